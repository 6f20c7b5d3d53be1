"""Telling webhooks of the registry's changes."""
