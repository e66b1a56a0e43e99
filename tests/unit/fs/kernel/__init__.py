"""Tests of s3mgrd.fs.kernel."""
