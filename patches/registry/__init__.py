"""The registry: tasks, versions, aliases, traffic and keys in Redis."""
