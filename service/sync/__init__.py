"""From the registry to the device: follows changes, loads bundles, judges canaries and shadows."""
