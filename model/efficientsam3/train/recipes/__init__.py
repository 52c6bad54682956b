"""The recipes of this package by name; other packages add theirs by entry points."""

from __future__ import annotations

# Name -> ``module:RECIPE``, as an entry point. It is imported when it is asked for.
RECIPES = {
    "stage1-image": f"{__name__}.stage1_image:RECIPE",
    "stage1-text": f"{__name__}.stage1_text:RECIPE",
    "stage2": f"{__name__}.stage2:RECIPE",
    "stage3": f"{__name__}.stage3:RECIPE",
    "finetune": f"{__name__}.finetune:RECIPE",
}
