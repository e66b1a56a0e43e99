"""Tests of the runner of other people's test suites."""
