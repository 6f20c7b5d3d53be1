"""Typed events, their transport between processes, and the metrics made of them."""
