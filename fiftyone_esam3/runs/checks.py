"""Check samples, fields and keys before a run starts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import fiftyone.core.fields as fof
import fiftyone.core.labels as fol
import fiftyone.core.media as fomm
import fiftyone.core.odm as foo

from efficientsam3.errors import shorten
from efficientsam3.values import is_whole

from ..ownership.merge import ADD, OVERWRITE, REFUSE
from .steps import RunError

SHAPE_LABELS = (fol.Detections, fol.Detection, fol.Keypoints, fol.Keypoint)
"""Labels that can prompt for objects."""

TEXT_LABELS = (fol.Classification, fol.Classifications, fol.Detections, fol.Detection)
"""Labels whose class names can be concepts."""


def refresh(dataset: Any) -> None:
    """Read the fields and runs of a dataset again if another process has added or deleted some.

    FiftyOne does not notice that by itself, so that a field with labels of people would be taken
    for a new one. Edits of samples in memory that are not saved are kept.

    Args:
        dataset: the dataset.
    """
    known = dataset._doc
    query = {"sample_fields.name": True, "frame_fields.name": True, "runs": True}
    stored = foo.get_db_conn().datasets.find_one({"_id": known.id}, query) or {}
    is_same = stored.get("runs", {}).keys() == (known.runs or {}).keys()
    for kind in ("sample_fields", "frame_fields"):
        names = {field["name"] for field in stored.get(kind) or ()}
        is_same = is_same and names == {field.name for field in getattr(known, kind) or ()}
    if stored and not is_same:
        dataset._reload(hard=True)


def check_samples(samples: Any, media: str = "image") -> None:
    """Check that a run can work on these samples.

    Args:
        samples: a dataset or a view.
        media: the media type that is needed, ``"image"`` or ``"video"``.

    Raises:
        RunError: there are no samples, the view holds patches or clips, or the media type differs.
    """
    refresh(samples._root_dataset)
    if samples._is_patches or samples._is_clips:
        kind = "patches" if samples._is_patches else "clips"
        raise RunError(
            f"this is a view of {kind}, and labels belong to whole samples; clear the view, or go "
            "back to the one that the patches were made of"
        )
    found = samples.media_type
    if found in (fomm.GROUP, fomm.MIXED):
        kinds = sorted(set((samples._root_dataset.group_media_types or {}).values()))
        raise RunError(
            f"this view mixes {' and '.join(kinds)}; choose one kind: "
            f"select_group_slices(media_type={media!r}), or one slice: select_group_slices('...')"
        )
    if not len(samples):
        raise RunError("there are no samples in this view; clear a filter or add samples")
    if found == media:
        return
    if media == "image":
        raise RunError(
            f"these samples are {found}; for videos use track_video, or a view of their frames: "
            "dataset.to_frames(sample_frames=True)"
        )
    raise RunError(f"these samples are {found}, and this needs {media}")


def read_patches(samples: Any) -> list[dict[str, str]]:
    """The labels that a view of patches shows, as the App selects labels.

    Args:
        samples: a view of patches.

    Returns:
        ``sample_id``, ``field`` and ``label_id`` of each label.

    Raises:
        RunError: a patch has labels of several fields.
    """
    fields = list(samples._label_fields)
    if len(fields) != 1:
        raise RunError(
            f"the patches of this view have labels of {len(fields)} fields; make a view of the "
            "patches of one field: to_patches('...')"
        )
    rows = zip(*samples.values(["sample_id", "id"]), strict=True)
    return [{"sample_id": one, "field": fields[0], "label_id": label} for one, label in rows]


def whole_samples(samples: Any) -> Any:
    """The samples that the patches of a view were made of; other views are given as they are.

    Args:
        samples: a dataset or a view.
    """
    if not samples._is_patches:
        return samples
    return samples._root_dataset.select(list(dict.fromkeys(samples.values("sample_id"))))


def check_field(
    samples: Any,
    name: str,
    *,
    kinds: Sequence[type] = (),
    new: bool = False,
    frames: bool = False,
) -> None:
    """Check that a field exists and holds the right labels, or that it can be made.

    Args:
        samples: a dataset or a view.
        name: the name of the field.
        kinds: the classes of labels that the field may hold. Empty: any.
        new: the field is written to, so it does not have to exist.
        frames: the field belongs to the frames of videos.

    Raises:
        RunError: the field cannot be used; the message lists the fields that can.
    """
    _check_text(name, "the name of a field")
    refresh(samples._root_dataset)
    # Images have no schema of frames.
    schema = (samples.get_frame_field_schema() or {}) if frames else samples.get_field_schema()
    if name not in schema:
        if new:
            check_name(name, "the name of a field")
            return
        fits = [n for n, f in schema.items() if not kinds or _holds(f, kinds)]
        listed = ", ".join(sorted(fits)) or "none that fit"
        raise RunError(f"there is no field {shorten(name)}; there are {listed}")
    if kinds and not _holds(schema[name], kinds):
        wanted = " or ".join(k.__name__ for k in kinds)
        document = getattr(schema[name], "document_type", None)
        content = (document or type(schema[name])).__name__
        raise RunError(f"the field {name!r} holds {content}; {wanted} is needed")


def check_text_field(samples: Any, name: str) -> None:
    """Check that a field can hold concepts.

    Args:
        samples: a dataset or a view.
        name: the name of the field.

    Raises:
        RunError: the field does not exist, or holds neither text nor labels.
    """
    _check_text(name, "the name of a field")
    field = samples.get_field_schema().get(name)
    if isinstance(field, (fof.StringField, fof.DictField)):
        return
    if isinstance(field, fof.ListField) and not isinstance(field.field, fof.FloatField):
        return
    check_field(samples, name, kinds=TEXT_LABELS)


def check_name(name: str, purpose: str) -> None:
    """Check that FiftyOne accepts a name for a field or a key.

    Args:
        name: the name.
        purpose: what the name is for, as it is written in the error.

    Raises:
        RunError: the name has other characters than letters, digits and _.
    """
    _check_text(name, purpose)
    if not name.isidentifier() or name.startswith("_"):
        raise RunError(f"{shorten(name)} cannot be {purpose}; use letters, digits and _")


def check_workers(num_workers: int) -> None:
    """Check a number of threads.

    Args:
        num_workers: the number; 0 is no thread.

    Raises:
        RunError: it is no whole number from 0.
    """
    if not is_whole(num_workers):
        raise RunError(f"num_workers is a number of threads from 0; got {shorten(num_workers)}")


def _check_text(name: Any, purpose: str) -> None:
    if not isinstance(name, str):
        raise RunError(f"{purpose} is a text; got {shorten(name)}")


def check_key(
    known: Collection[str],
    key: str,
    kind: str,
    existing: str,
    allowed: Sequence[str] = (OVERWRITE,),
) -> None:
    """Check that a key is free, or that an argument says what happens to what it names.

    Args:
        known: the keys that the dataset has.
        key: the key.
        kind: what it names, with an article.
        existing: "refuse", or one of ``allowed``.
        allowed: the values of ``existing`` that allow a key which the dataset has.

    Raises:
        RunError: the dataset has the key, and ``existing`` is "refuse" or not possible here.
    """
    _check_text(key, f"the name of {kind}")
    if existing not in (REFUSE, *allowed):
        ways = ", ".join(map(repr, (REFUSE, *allowed)))
        raise RunError(f"existing is {existing!r}; for {kind} it can be {ways}")
    if key in known and existing == REFUSE:
        effects = {ADD: "extends it", OVERWRITE: "replaces it"}
        ways = ", ".join(f"existing={way!r} {effects[way]}" for way in allowed)
        raise RunError(f"there is {kind} {key!r} already; choose another name, or {ways}")


def _holds(field: Any, kinds: Sequence[type]) -> bool:
    document = getattr(field, "document_type", None)
    return document is not None and issubclass(document, tuple(kinds))
