"""A run in pictures."""
