"""Tests of s3mgrd.fs.reading."""
