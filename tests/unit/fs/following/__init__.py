"""Tests of s3mgrd.fs.following."""
