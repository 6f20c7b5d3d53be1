"""The composition roots of each process: supervisor, HTTP worker, device."""
