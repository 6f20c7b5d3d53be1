"""Baselines that read a history as a bag of items: linear models, and neighbours of items."""
