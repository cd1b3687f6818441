"""From a folder to batches."""
