"""Tests of s3mgrd.fs.changing."""
