"""The one place where outside bytes become pixels."""
