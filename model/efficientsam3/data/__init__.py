"""Data sets: annotations, and samples and clips for training."""
