"""Recipes that train the packaged model, and stage 3 with scenes among the data."""
