"""Measurements, each a script: ``python -m benchmarks.<name>``. Results are in ``docs/benchmarks-*.md``."""
