"""Splits, loading and augmentation."""
