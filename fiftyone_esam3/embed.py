"""Embeddings of many samples, or of their labels, by the image encoder."""

from __future__ import annotations

from typing import Any

import fiftyone.brain as fob
import fiftyone.core.fields as fof
import fiftyone.core.labels as fol
from fiftyone import ViewField

from .runs import RunError, Step, Steps, by_chunks, check_field, check_samples, digest
from .shared import COMPUTING, keep, stamp
from .source import load_model
from .speed import remember


def compute_embeddings(
    samples: Any,
    *,
    embeddings_field: str = "esam3_embedding",
    patches_field: str | None = None,
    brain_key: str | None = None,
    model: str,
    again: bool = False,
    num_workers: int = 0,
    **options: Any,
) -> Steps:
    """Embeds samples, or the boxes of a field, and makes an index for similarity if asked to.

    Args:
        embeddings_field: of the samples, or an attribute of the labels in ``patches_field``.
        brain_key: of a similarity index over them, for ``sort_by_similarity`` and the App.
        model, again, num_workers, options: as in ``segment_concepts``.

    Raises:
        RunError: the field holds something else, or another model's embeddings.
    """
    check_samples(samples)
    dataset = samples._root_dataset
    if patches_field is not None:
        check_field(samples, patches_field, kinds=(fol.Detections,))
    if brain_key is not None and not brain_key.isidentifier():
        raise RunError(f"{brain_key!r} cannot be a brain key; use letters, digits and _")
    question = {"model": model, "stamp": stamp(model), **options}
    asked = digest(question)
    if patches_field is None:
        _check_owner(dataset, embeddings_field, model, asked, again)
    yield Step(0, len(samples), f"loading {model}")
    with COMPUTING:
        zoo = load_model(model, **options)
    keep(zoo.core)
    common = {"num_workers": num_workers, "skip_failures": True, "progress": False}

    def work(view: Any) -> None:
        with COMPUTING:
            if patches_field is None:
                view.compute_embeddings(zoo, embeddings_field=embeddings_field, **common)
            else:
                view.compute_patch_embeddings(
                    zoo, patches_field, embeddings_field=embeddings_field, **common
                )

    path = embeddings_field
    if patches_field is not None:
        path = f"{patches_field}.detections.{embeddings_field}"
        is_done = (
            ViewField(f"{patches_field}.detections")
            .filter(~ViewField(embeddings_field).exists())
            .length()
            == 0
        )
    else:
        is_done = ViewField(embeddings_field).exists()
    least = 16 * num_workers or 1
    summary = yield from by_chunks(
        samples, embeddings_field, asked, work, is_done=is_done, again=again, least=least
    )
    remember(model, summary)
    if patches_field is None and dataset.has_sample_field(embeddings_field):
        field = dataset.get_field(embeddings_field)
        field.info = {"model": model, ASKED_BY: asked}
        field.save()
        without = len(samples.exists(embeddings_field, False))
        summary["failed"] = without
        summary["done"] = summary["samples"] - summary["before"] - without
    if brain_key is not None:
        yield Step(summary["samples"], summary["samples"], "making the similarity index")
        whole = samples.exists(embeddings_field) if patches_field is None else samples
        if dataset.has_brain_run(brain_key):
            dataset.delete_brain_run(brain_key)
        fob.compute_similarity(
            whole, patches_field=patches_field, embeddings=embeddings_field, brain_key=brain_key
        )
    return {**summary, "field": path, "model": model, "brain_key": brain_key}


ASKED_BY = "efficientsam3"


def _check_owner(dataset: Any, name: str, model: str, asked: str, again: bool) -> None:
    field = dataset.get_field(name)
    if field is None:
        check_field(dataset, name, new=True)
        return
    if not isinstance(field, (fof.VectorField, fof.ArrayField)):
        raise RunError(f"the field {name!r} holds no embeddings; name another one")
    info = field.info or {}
    if info.get(ASKED_BY) not in (None, asked) and not again:
        raise RunError(
            f"{name!r} holds embeddings of {info.get('model')}, and those of {model} are not to be "
            "compared with them; name another field, or do all anew"
        )
