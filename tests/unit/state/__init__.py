"""state.db."""
