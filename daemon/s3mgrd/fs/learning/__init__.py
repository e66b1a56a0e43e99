"""What S3 is asked about names and attributes, and how its answers get into mount.db."""
