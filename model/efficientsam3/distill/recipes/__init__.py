"""Recipes by name: whole curricula that `efficientsam3 distill` runs, each a module here."""

from __future__ import annotations

RECIPES = {
    "stickers": (
        "efficientsam3.distill.recipes.stickers",
        "the embedded model, from scenes of stickers: teacher, student, fine-tuned whole",
    ),
    "stage1-image": (
        "efficientsam3.distill.recipes.stage1_image",
        "a small image encoder learns from SAM3's, on SA-1B: maps, then masks of prompts",
    ),
    "stage1-text": (
        "efficientsam3.distill.recipes.stage1_text",
        "a small text encoder learns from SAM3's: captions, then noun phrases",
    ),
    "stickers-video": (
        "efficientsam3.distill.recipes.stickers_video",
        "the embedded model learns to track: a full memory, and a Perceiver distilled from it",
    ),
    "stage2": (
        "efficientsam3.distill.recipes.stage2",
        "a Perceiver memory learns from the full one of a released or merged model, on SA-V",
    ),
    "stage3": (
        "efficientsam3.distill.recipes.stage3",
        "parts of a whole model, released or merged, learn from SA-Co, COCO and LVIS",
    ),
}
"""Name -> (module with a ``RECIPE``, what it makes). Imported when asked for: torch is heavy."""
