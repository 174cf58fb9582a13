"""From a list of class names to a trained image classifier behind a URL."""

__version__ = "0.1.0"
