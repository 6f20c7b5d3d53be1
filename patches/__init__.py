"""The bundle (format, verification) and the registry that holds bundles in Redis."""
