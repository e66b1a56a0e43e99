"""state.db: what the supervisor remembers. Only this package touches that file; nothing here knows what a mount does."""
