"""Callbacks of a training, one a file."""
