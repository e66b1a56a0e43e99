"""s3mgrd: the daemon that keeps S3 buckets mounted."""
