"""Makes a field's masks open in the App's Annotate mode."""

from __future__ import annotations

from typing import Any

from .runs import RunError, Step, Steps, check_field


def prepare_annotation(samples: Any, fields: list[str], *, activate: bool = True) -> Steps:
    """Gives fields the label schemas without which Annotate does not show them.

    A schema lists a field's classes and attributes, as the labels have them now. Schemas of other
    fields stay; one that a field has already is made anew from its labels.

    Args:
        fields: of labels. activate: show them in Annotate at once.

    Returns:
        ``fields``, and the classes that each schema offers.
    """
    dataset = samples._root_dataset
    if not fields:
        raise RunError("choose at least one field of labels")
    for name in fields:
        check_field(dataset, name)
    classes = {}
    for done, name in enumerate(fields):
        yield Step(done, len(fields), f"reading the labels in {name}")
        schema = dataset.generate_label_schemas(name)
        dataset.update_label_schema(name, schema, allow_new_attrs=True, allow_new_fields=True)
        classes[name] = _classes(schema)
    if activate:
        dataset.activate_label_schemas(fields)
    return {"samples": len(dataset), "fields": fields, "classes": classes}


def _classes(schema: dict[str, Any]) -> list[str]:
    return [str(name) for name in schema.get("classes") or []]
