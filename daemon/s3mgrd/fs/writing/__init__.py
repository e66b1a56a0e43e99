"""Bytes that programs wrote, from the first write() to the requests that send them to S3."""
