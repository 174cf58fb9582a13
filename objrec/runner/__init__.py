"""Run steps on this machine: keys, the cache of outputs, the runner and its display."""
