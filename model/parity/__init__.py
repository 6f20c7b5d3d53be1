"""The published code: import of its checkpoints and checks against its outputs."""
