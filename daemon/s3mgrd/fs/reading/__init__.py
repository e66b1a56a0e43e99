"""Bytes of versions in S3, brought to who reads them, and to the block cache before anybody does."""
