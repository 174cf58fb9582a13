"""Registered models: records, aliases, integrity."""
