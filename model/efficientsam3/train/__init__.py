"""Distillation: tasks, losses, teachers, recipes and the training loop."""
