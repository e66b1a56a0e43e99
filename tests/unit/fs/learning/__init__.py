"""Tests of s3mgrd.fs.learning."""
