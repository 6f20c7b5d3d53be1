"""From the registry to the device: following changes, loading bundles, guarding rollouts."""
