"""Give fields the label schemas that the App's Annotate mode needs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import fiftyone.core.labels as fol

from ..ownership.merge import ADD, OVERWRITE, REFUSE
from ..ownership.record import machine_attributes
from .checks import check_field, check_key
from .steps import RunError, Step, Steps


def prepare_annotation(
    samples: Any, fields: list[str], *, activate: bool = True, existing: str = REFUSE
) -> Steps:
    """Make label schemas, without which Annotate does not show a field.

    A schema lists the classes and attributes that the labels of a field have now, without those
    that evaluations added. The schemas of other fields are kept.

    Args:
        samples: a dataset, or a view; schemas belong to the whole dataset.
        fields: names of fields with labels.
        activate: also show the fields in Annotate.
        existing: "refuse" refuses a field that has a schema; "add" keeps its schema and appends
            classes and attributes that it does not have; "overwrite" replaces it.

    Returns:
        ``fields``, and ``classes``: the classes of each schema.

    Raises:
        RunError: no field is named, one does not exist, one has a schema, or one has labels that
            Annotate does not edit.
    """
    dataset = samples._root_dataset
    if not fields:
        raise RunError("choose at least one field of labels")
    known = dataset.label_schemas
    for name in fields:
        check_field(dataset, name, kinds=(fol.Label,))
        check_key(known, name, "a label schema of the field", existing, (ADD, OVERWRITE))
    classes, schemas = {}, {}
    for done, name in enumerate(fields):
        yield Step(done, len(fields), f"reading the labels in {name}")
        schema = _without(_generate(dataset, name), machine_attributes(dataset))
        if existing == ADD and name in known:
            schema = _extended(known[name], schema)
        schemas[name] = schema
    for name, schema in schemas.items():
        dataset.update_label_schema(name, schema, allow_new_attrs=True, allow_new_fields=True)
        classes[name] = [str(label) for label in schema.get("classes") or []]
    if activate:
        dataset.activate_label_schemas(fields)
    return {"fields": fields, "classes": classes}


def _generate(dataset: Any, name: str) -> dict[str, Any]:
    """The schema of a field from its labels."""
    try:
        return dict(dataset.generate_label_schemas(name))
    except ValueError as error:
        kind = dataset.get_field(name).document_type.__name__
        raise RunError(
            f"Annotate does not edit {kind}, which the field {name!r} holds: choose a field of "
            "Detections, Classifications or Polylines"
        ) from error


def _without(schema: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """A schema without some attributes."""
    kept = [a for a in schema.get("attributes") or [] if a["name"] not in names]
    return {**schema, "attributes": kept}


def _extended(schema: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A schema with the classes and attributes of a new one that it does not have."""
    classes, attributes = list(schema.get("classes") or []), list(schema.get("attributes") or [])
    classes += [name for name in new.get("classes") or [] if name not in classes]
    names = {attribute["name"] for attribute in attributes}
    attributes += [a for a in new.get("attributes") or [] if a["name"] not in names]
    out = {**schema, "attributes": attributes}
    return {**out, "classes": classes} if classes else out
