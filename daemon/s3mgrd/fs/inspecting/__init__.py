"""What people and programs may see of a file system, and the few things they may order."""
