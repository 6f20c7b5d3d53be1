"""The HTTP routes: one file per resource, each with a ``router`` of module-level handlers."""
