"""Files and processes: what knows nothing of images."""
