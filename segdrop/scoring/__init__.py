"""Scores, in NumPy alone: no network, no file."""
