"""Tests of s3mgrd.fs.inspecting."""
