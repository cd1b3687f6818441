"""Many trainings, one answer."""
