"""Export of a registry into an archive, and import from one."""
