"""Tests of the S3 store's parts."""
