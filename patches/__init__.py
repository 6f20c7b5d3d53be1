"""Bundles, the registry in Redis, and backups of it. Nothing here imports torch."""
