"""Measures of a trained model on images, and the report. Imports no torch."""
