"""s3mgr beside other mounts, on the same S3 and the same work: ``python -m tests.bench.compare``."""
