"""Metrics: cgF1, HOTA, J&F and average precision."""
