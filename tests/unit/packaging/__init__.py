"""Tests of what is around the code: locks, units, structure, and the plugin against skips."""
