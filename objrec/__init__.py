"""From a list of class names to a trained image classifier behind a URL."""

from objrec.system.telemetry import switch_off

__version__ = "0.1.0"

switch_off()
