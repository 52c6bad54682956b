"""Compute embeddings of many samples, or of their boxes, with the image encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fiftyone.brain as fob
import fiftyone.core.fields as fof
import fiftyone.core.labels as fol
import numpy as np
from fiftyone import ViewField
from fiftyone.utils.patches import extract_patch

from efficientsam3 import ImageModel

from ..image_items import FixedSize, Item
from ..model_cache import file_stamp, load_for_run
from ..ownership.merge import ADD, OVERWRITE, REFUSE
from .checks import check_field, check_key, check_name, check_samples
from .image_task import ValueTask
from .run import run_over_images
from .steps import RunError, Step, Steps


def compute_embeddings(
    samples: Any,
    *,
    embeddings_field: str = "esam3_embedding",
    patches_field: str | None = None,
    brain_key: str | None = None,
    model: str,
    existing: str = REFUSE,
    restart: bool = False,
    num_workers: int = 0,
    **options: Any,
) -> Steps:
    """Compute embeddings, and a similarity index of them.

    Args:
        samples: images, or a view of them.
        embeddings_field: the field for the embeddings. With ``patches_field`` it is an attribute
            of the labels there.
        patches_field: a field with ``Detections``: each box is embedded instead of the image.
        brain_key: the key of a similarity index, for ``sort_by_similarity``. None: no index.
        model: a model name, or the folder of a saved model.
        existing: what happens to an index that has the key, and to vectors in the field that no run
            of this package computed: "refuse" refuses; "add" keeps them, computes what is missing
            and extends the index; "overwrite" replaces them.
        restart: also process samples that have embeddings. Those whose images were replaced since
            are processed anyway.
        num_workers: the number of threads that read images ahead.
        **options: further arguments of ``efficientsam3.load``.

    Raises:
        RunError: the field holds something else, or embeddings of another model; or the dataset has
            the key.
    """
    check_samples(samples)
    dataset = samples._root_dataset
    if patches_field is not None:
        check_field(samples, patches_field, kinds=(fol.Detections,))
    if brain_key is not None:
        check_name(brain_key, "a brain key")
        check_brain_key(dataset, brain_key, existing)
    request = {"model": model, "stamp": file_stamp(model), **options}
    if patches_field is None:
        check_embeddings_field(
            dataset, embeddings_field, None if restart else request, existing=existing
        )
        restart = restart or (existing == OVERWRITE and not _is_ours(dataset, embeddings_field))

    def embed_image(core: ImageModel, sample: Any, item: Item) -> Any:
        return core.embed(item.image)

    def embed_patches(core: ImageModel, sample: Any, item: Item) -> Any:
        labels, resize = sample[patches_field], FixedSize(core.config.resolution)
        return {
            detection.id: core.embed(resize(extract_patch(item.pixels, detection)))
            for detection in (labels.detections if labels is not None else ())
            if restart or sample.id in task.replaced or not detection.has_field(embeddings_field)
        }

    path = embeddings_field
    if patches_field is not None:
        path = f"{patches_field}.detections.{embeddings_field}"
    if patches_field is None:
        is_done = ViewField(embeddings_field).exists()
    else:
        without = ViewField(f"{patches_field}.detections").filter(
            ~ViewField(embeddings_field).exists()
        )
        is_done = without.length() == 0
    mark_field = "_".join(filter(None, [patches_field, embeddings_field, "file"]))
    task = ValueTask(
        patches_field or embeddings_field,
        embed_image if patches_field is None else embed_patches,
        is_done,
        None if patches_field is None else path,
        mark_field=mark_field,
    )
    yield Step(0, len(samples), f"loading {model}")
    load_for_run(model, **options)
    if patches_field is None:
        _claim_field(dataset, embeddings_field, request)
    if not dataset.has_sample_field(mark_field):
        dataset.add_sample_field(mark_field, fof.StringField)
    summary = yield from run_over_images(
        samples,
        task,
        model=model,
        request={"embeddings_field": embeddings_field},
        restart=restart,
        num_workers=num_workers,
        options=options,
    )
    if brain_key is not None:
        yield Step(summary["samples"], summary["samples"], "making the similarity index")
        whole = samples.exists(embeddings_field) if patches_field is None else samples
        if dataset.has_brain_run(brain_key) and existing == ADD:
            _extend_index(dataset.load_brain_results(brain_key), whole, path, patches_field)
        else:
            if dataset.has_brain_run(brain_key):
                dataset.delete_brain_run(brain_key)
            fob.compute_similarity(
                whole, patches_field=patches_field, embeddings=embeddings_field, brain_key=brain_key
            )
    return {**summary, "field": path, "brain_key": brain_key}


INFO_KEY = "efficientsam3"
"""The key in a field's ``info`` that says which model made its embeddings."""


def check_brain_key(dataset: Any, key: str, existing: str) -> None:
    """Check that a key can name a similarity index.

    Args:
        dataset: the dataset.
        key: the key.
        existing: see :func:`compute_embeddings`.

    Raises:
        RunError: the dataset has the key, and may not extend or replace what it names.
    """
    known = dataset.list_brain_runs()
    if key in known:
        kind = dataset.get_brain_info(key).config.type
        if kind != "similarity":
            raise RunError(
                f"{key!r} names a {kind} of this dataset, not an index; choose another name"
            )
    check_key(known, key, "a similarity index", existing, (ADD, OVERWRITE))


def _extend_index(index: Any, samples: Any, path: str, patches_field: str | None) -> None:
    """Add the vectors of samples, or of their labels, to an index that does not have them."""
    if patches_field is None:
        ids, vectors = samples.values(["id", path])
        owners, labels = ids, None
    else:
        names = ["id", f"{patches_field}.detections.id", path]
        rows = [
            (owner, label, vector)
            for owner, listed, found in zip(*samples.values(names), strict=True)
            for label, vector in zip(listed or (), found or (), strict=True)
            if vector is not None
        ]
        owners, labels, vectors = (list(column) for column in zip(*rows, strict=True))
    index.add_to_index(
        np.stack(vectors),
        np.array(owners),
        label_ids=None if labels is None else np.array(labels),
        overwrite=True,  # with the vectors of the field: images may have been replaced
    )
    index.save()


def _claim_field(dataset: Any, name: str, request: Mapping[str, Any]) -> None:
    """Make the field where it does not exist, and write the model's name into its ``info``."""
    if not dataset.has_sample_field(name):
        dataset.add_sample_field(name, fof.VectorField)
    field = dataset.get_field(name)
    field.info = {**(field.info or {}), INFO_KEY: {k: str(v) for k, v in request.items()}}
    field.save()


def _is_ours(dataset: Any, name: str) -> bool:
    field = dataset.get_field(name)
    return field is not None and INFO_KEY in (field.info or {})


def check_embeddings_field(
    dataset: Any,
    name: str,
    request: dict[str, Any] | None = None,
    *,
    existing: str = REFUSE,
) -> None:
    """Check that a field can hold the embeddings of a request.

    Args:
        dataset: the dataset.
        name: the name of the field.
        request: the model and its options. None: embeddings of any model may be replaced.
        existing: see :func:`compute_embeddings`.

    Raises:
        RunError: the field holds something else, or the embeddings of another model.
    """
    field = dataset.get_field(name)
    if field is None:
        check_field(dataset, name, new=True)
        return
    if not isinstance(field, (fof.VectorField, fof.ArrayField)):
        raise RunError(f"the field {name!r} holds no embeddings; name another one")
    known = (field.info or {}).get(INFO_KEY)
    if known is None and existing == REFUSE and len(dataset.exists(name)):
        raise RunError(
            f"{name!r} holds vectors that no run of this package computed; name another field, or "
            f"choose existing={ADD!r} to keep them, {OVERWRITE!r} to replace them"
        )
    if request is not None and known not in (None, {k: str(v) for k, v in request.items()}):
        raise RunError(
            f"{name!r} holds embeddings of {known['model']}, which cannot be compared with those "
            f"of {request['model']}; name another field, or restart"
        )
