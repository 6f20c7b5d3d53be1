"""The comparison of the paper: every method on the same users, with reports."""
