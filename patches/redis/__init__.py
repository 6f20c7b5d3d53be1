"""Connections to Redis, and the embedded Redis that starts where none is configured."""
