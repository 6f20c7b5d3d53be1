"""Tensors only: specs, the backbone, patches, heads, the mixed-task forward, data and training."""
