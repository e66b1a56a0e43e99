"""The API over a real unix socket, in front of a fake service."""
