"""Tests of the client against a fake daemon."""
