"""The ``peterrec`` command: one module per group of commands."""
