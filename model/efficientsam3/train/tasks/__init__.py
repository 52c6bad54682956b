"""The training tasks: each has a module, its batches and its loss."""
