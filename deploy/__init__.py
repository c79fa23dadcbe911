"""What proves the image, where there is no Docker engine."""
