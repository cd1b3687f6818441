"""Image files as they are: one reader per format."""
