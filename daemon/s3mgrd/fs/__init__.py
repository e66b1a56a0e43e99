"""The file system: names, attributes, reads, writes, and what S3 has to follow. Knows nothing of processes."""
