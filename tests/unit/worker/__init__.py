"""The domain of the control plane, on fakes and virtual time."""
