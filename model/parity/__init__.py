"""The published code: import of its checkpoints, and checks against its recorded outputs.

Everything that exists only to reproduce the published code belongs here.
"""
