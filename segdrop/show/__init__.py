"""What a terminal or a picture shows."""
