"""Conformance: test suites of others, run on real mounts of s3mgr and of other S3 file systems. See `packaging/conformance`."""
