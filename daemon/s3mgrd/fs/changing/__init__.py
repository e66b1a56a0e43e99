"""Changes of names and attributes, made in mount.db at once."""
