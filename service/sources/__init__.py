"""Bundles by address: an HTTPS server, S3, an OCI registry, or a run of MLflow."""
