"""Where images come from: one file per source behind the protocol in ``base``."""
