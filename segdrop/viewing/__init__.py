"""A run's network at work on one image after the other, on a page in the browser."""
