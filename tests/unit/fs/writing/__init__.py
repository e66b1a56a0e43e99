"""Tests of s3mgrd.fs.writing."""
