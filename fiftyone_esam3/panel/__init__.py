"""The panel: try words, clicks and boxes on one sample, and keep what is good."""

from .panel import Workbench

__all__ = ["Workbench"]
