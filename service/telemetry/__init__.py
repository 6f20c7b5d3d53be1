"""Typed events, how they travel between processes, and the metrics made of them."""
