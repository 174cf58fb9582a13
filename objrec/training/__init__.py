"""One training: the Lightning module, its fit and what shapes them."""
