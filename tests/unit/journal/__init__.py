"""Tests of s3mgrd.journal."""
