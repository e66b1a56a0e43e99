"""Tests of the caches on disk."""
