"""The kernel's requests, translated: names and flags in, attributes and errno out."""
