"""Tests of what the measurements share."""
