"""Tests of servers that tests use."""
