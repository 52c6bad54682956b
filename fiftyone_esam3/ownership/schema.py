"""Declare the attributes of labels, so that the App's sidebar can filter by them."""

from __future__ import annotations

from typing import Any

import fiftyone.core.fields as fof


def declare_presence(dataset: Any, field: str, frames: bool = False) -> None:
    """Add ``presence`` and ``concept_presence`` of a field of labels to the dataset's schema.

    Args:
        dataset: the dataset.
        field: the field, without ``frames.``. Nothing is done if it does not exist.
        frames: the field belongs to the frames of videos.
    """
    if frames:
        schema, add = dataset.get_frame_field_schema(flat=True), dataset.add_frame_field
    else:
        schema, add = dataset.get_field_schema(flat=True), dataset.add_sample_field
    if f"{field}.detections" not in schema:
        return
    if f"{field}.detections.presence" not in schema:
        add(f"{field}.detections.presence", fof.FloatField)
    if f"{field}.concept_presence" not in schema:
        add(f"{field}.concept_presence", fof.DictField, subfield=fof.FloatField)
