"""Many trainings from one command: what is varied, how trials are chosen, started and recorded, what is shown."""
