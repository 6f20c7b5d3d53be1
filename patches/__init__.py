"""What is kept: bundles, the registry in Redis, and its backups. Free of torch."""
