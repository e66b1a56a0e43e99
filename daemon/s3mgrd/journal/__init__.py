"""What S3 does not have yet: staged file data, deletes, renames; all of it survives the worker."""
