"""The kernel connection: mount, handshake, tuning, and the mount table. The supervisor owns it; workers serve it."""
