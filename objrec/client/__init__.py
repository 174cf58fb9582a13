"""What predict.py asks, reads and prints."""
