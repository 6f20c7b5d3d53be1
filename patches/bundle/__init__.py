"""The bundle: one immutable file with a manifest, a patch, a head and probes."""
