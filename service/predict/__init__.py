"""Predictions in an HTTP worker: from a parsed request to decoded answers."""
