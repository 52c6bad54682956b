"""Losses of the training tasks, and the matching of queries to objects."""
