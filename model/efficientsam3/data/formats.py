"""Which format an annotation file has, and the reader for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import AnnotationError


def annotation_format(path: Path, content: Any) -> str:
    """Recognize the format of an annotation file by its content.

    Args:
        path: The file, for errors.
        content: The parsed JSON.

    Returns:
        "saco" (SA-Co Gold or Silver), "coco", "lvis" or "veval" (SA-Co/VEval).

    Raises:
        AnnotationError: The file has none of these formats.
    """
    if isinstance(content, dict) and "videos" in content:
        return "veval"
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or "annotations" not in content:
        has = ", ".join(map(repr, content)) if isinstance(content, dict) else type(content).__name__
        raise AnnotationError(
            f"{path} has no known annotation format: it has {has or 'nothing'}. SA-Co, COCO and "
            "LVIS have 'images' and 'annotations', SA-Co/VEval has 'videos'"
        )
    first = images[0] if images and isinstance(images[0], dict) else {}
    if "text_input" in first:
        return "saco"
    if "neg_category_ids" in first or "not_exhaustive_category_ids" in first:
        return "lvis"
    return "coco"
