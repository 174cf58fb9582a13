"""Prediction without torch, and the endpoint around it."""
