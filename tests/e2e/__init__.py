"""Tests of the whole: a real daemon, real mounts, real programs, S3 servers of other people."""
