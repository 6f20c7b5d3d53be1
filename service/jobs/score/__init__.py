"""Bulk scoring: the answers of many tasks for a whole user base, from files to files."""
