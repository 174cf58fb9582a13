"""From a raw data set to split folders: cropped in parallel, free of duplicates, split without leakage."""
