"""A model folder at work: runtimes, the predictor, export, scores."""
