"""What users ask for: options, checked."""
