"""S3: the `ObjectStore` port that the file system uses, and its adapters."""
