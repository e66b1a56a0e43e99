"""The domain of the control plane: specs, the state machine of a mount, and what reconciles the two."""
