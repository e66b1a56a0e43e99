"""Tests of mount.db."""
