"""Masks: overlap, coarse masks, postprocessing."""
