"""Bodies of answers about tasks, versions and changes, made from the registry's records."""
