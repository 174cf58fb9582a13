"""Guarded access to the web: addresses, robots, downloads."""
