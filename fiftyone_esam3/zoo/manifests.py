"""Write both manifests from the core's table: ``python -m fiftyone_esam3.zoo.manifests``.

``zoo_manifest.json`` names Python classes. An installed package adds it to FiftyOne's
configuration. ``manifest.json`` names no classes: FiftyOne reads it in a folder that it copied
from a repository, and calls the functions of ``__init__.py`` there. Both list the same models.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from efficientsam3.variants import (
    EMBEDDED,
    STAGES,
    VARIANTS,
    WEIGHTS_FILE,
    Packaged,
    Variant,
    list_models,
)

from .source import VIDEO_MODEL

HERE = Path(__file__).parents[1]

REMOTE_NAME = "efficientsam3-zoo"
"""The folder of a registered source, and the name under which FiftyOne imports it.

It must not be ``efficientsam3``, which would hide the core. With a dot or a slash it would be a
submodule of a module that does not exist, and the workers of a data loader could not unpickle its
classes."""

MANAGER_CLASS = "fiftyone_esam3.zoo.manager.WeightsManager"
IMAGE_CLASS = "fiftyone_esam3.zoo.image_model.EfficientSam3"
VIDEO_CLASS = "fiftyone_esam3.zoo.video_model.EfficientSam3Video"

TAGS = ["efficientsam3", "embeddings", "instances", "segment-anything", "segmentation", "torch"]


def describe(variant: Variant) -> dict[str, Any]:
    """The entry of an image model in both manifests.

    Args:
        variant: the model.
    """
    weights = variant.weights
    parts = [f"Image encoder {variant.vision}", f"text encoder {variant.text}"]
    if isinstance(weights, Packaged):  # its size changes with its file, without this table
        source, file = {}, WEIGHTS_FILE
        remark = " Part of the package: nothing is downloaded."
    else:
        source, file = {"source": f"https://huggingface.co/{weights.repo}"}, weights.path
        remark = " Gated: ask for access first." if weights.gated else ""
        parts.append(f"{variant.params_millions:.0f} million parameters")
    authors = {"original": "Meta", "stickers": "the EfficientSAM3 library authors"}
    return {
        "base_name": variant.name,
        # A link to the file in the Hugging Face cache. FiftyOne's own zoo has a sam3.pt too.
        "base_filename": f"{variant.name}.efficientsam3{PurePosixPath(file).suffix}",
        "description": (
            "Finds and segments all instances of any concept, from words, example boxes or points. "
            f"{', '.join(parts)}; {STAGES[variant.stage]}.{remark}"
        ),
        **source,
        "author": authors.get(variant.stage, "Chengxi Simon Zeng, et al."),
        "license": weights.license,
        "tags": [*TAGS, "zero-shot"],
        # The core is not listed: its name on a package index may belong to another package one
        # day. The functions of this folder say what to install.
        "requirements": {
            "packages": ["torch", "torchvision"],
            "cpu": {"support": True},
            "gpu": {"support": True},
        },
    }


def describe_video() -> dict[str, Any]:
    """The entry of the video model in both manifests."""
    own = describe(VARIANTS[EMBEDDED])
    return {
        **own,
        "base_name": VIDEO_MODEL,
        "base_filename": f"{VIDEO_MODEL}.efficientsam3{PurePosixPath(WEIGHTS_FILE).suffix}",
        "description": (
            "Finds all instances of any concept in videos and tracks them, or tracks objects that "
            "boxes and points show; also on CPUs. The argument variant names the model that it "
            f"runs, {EMBEDDED} by default."
        ),
        "tags": [*TAGS, "video", "zero-shot"],
    }


def config_manifest() -> dict[str, Any]:
    """The manifest for ``fiftyone.config.model_zoo_manifest_paths``."""
    models = []
    for name, model, variant, description in [
        *((name, IMAGE_CLASS, name, describe(VARIANTS[name])) for name in list_models()),
        (VIDEO_MODEL, VIDEO_CLASS, EMBEDDED, describe_video()),
    ]:
        models.append(
            {
                **description,
                "manager": {"type": MANAGER_CLASS, "config": {"model": name}},
                "default_deployment_config_dict": {"type": model, "config": {"variant": variant}},
            }
        )
    return {"models": models}


def remote_manifest() -> dict[str, Any]:
    """The manifest for ``fiftyone.zoo.register_zoo_model_source``."""
    return {
        "name": REMOTE_NAME,
        "models": [*(describe(VARIANTS[name]) for name in list_models()), describe_video()],
    }


MANIFESTS = {"manifest.json": remote_manifest, "zoo_manifest.json": config_manifest}


def text(file: str) -> str:
    """The content of a manifest's file.

    Args:
        file: a name in ``MANIFESTS``.
    """
    return json.dumps(MANIFESTS[file](), indent=1) + "\n"


if __name__ == "__main__":
    for file in MANIFESTS:
        (HERE / file).write_text(text(file), encoding="utf-8")
