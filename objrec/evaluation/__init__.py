"""Measures of a trained model on pictures, and the report. Imports no torch."""
