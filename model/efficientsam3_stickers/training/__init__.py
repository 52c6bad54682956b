"""Initial weights, losses and tasks of training from scratch."""
