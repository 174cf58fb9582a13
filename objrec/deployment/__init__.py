"""The gate, the acceptance test, the rollout and the background service."""
