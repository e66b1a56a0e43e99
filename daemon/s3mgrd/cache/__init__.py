"""What the mount knows of S3: mount.db, its tables of names and versions."""
