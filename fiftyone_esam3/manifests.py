"""Writes both lists of models from the core's table: ``python -m fiftyone_esam3.manifests``.

``zoo_manifest.json`` names Python classes, and is what an installed package adds to FiftyOne's
configuration. ``manifest.json`` names none: it is what FiftyOne reads in a folder that it copied
from a repository, where ``__init__.py`` has the functions. They list the same models.
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

HERE = Path(__file__).parent

REMOTE_NAME = "efficientsam3-zoo"
"""The folder of a registered source, and the name under which FiftyOne imports it. It must not be
``efficientsam3``, which would hide the core. With a dot or a slash it would be a submodule of what
does not exist, and pickle, and so a data loader's workers, could not find its classes."""

TAGS = ["efficientsam3", "embeddings", "instances", "segment-anything", "segmentation", "torch"]


def describe(variant: Variant) -> dict[str, Any]:
    """What both manifests say about a model."""
    weights = variant.weights
    parts = [f"Image encoder {variant.vision}", f"text encoder {variant.text}"]
    if isinstance(weights, Packaged):  # its size is its file's, which changes without this table
        source, file = {}, WEIGHTS_FILE
        remark = " Part of the package: nothing is downloaded."
    else:
        source, file = {"source": f"https://huggingface.co/{weights.repo}"}, weights.path
        remark = " Gated: ask for access first." if weights.gated else ""
        parts.append(f"{variant.params_millions:.0f} million parameters")
    authors = {"original": "Meta", "stickers": "the EfficientSAM3 library authors"}
    return {
        "base_name": variant.name,
        # A link to the file in the Hugging Face cache. FiftyOne has a sam3.pt of its own.
        "base_filename": f"{variant.name}.efficientsam3{PurePosixPath(file).suffix}",
        "description": (
            "Finds and segments all instances of any concept, from words, example boxes or points. "
            f"{', '.join(parts)}; {STAGES[variant.stage]}.{remark}"
        ),
        **source,
        "author": authors.get(variant.stage, "Chengxi Simon Zeng, et al."),
        "license": weights.licence,
        "tags": [*TAGS, "zero-shot"],
        # Not the core: its name on a package index may one day be somebody else's package. Our
        # functions say what to install.
        "requirements": {
            "packages": ["torch", "torchvision"],
            "cpu": {"support": True},
            "gpu": {"support": True},
        },
    }


def describe_video() -> dict[str, Any]:
    """What both manifests say about the model of whole videos."""
    own = describe(VARIANTS[EMBEDDED])
    return {
        **own,
        "base_name": VIDEO_MODEL,
        "base_filename": f"{VIDEO_MODEL}.efficientsam3{PurePosixPath(WEIGHTS_FILE).suffix}",
        "description": (
            "Finds all instances of any concept in videos and follows them, or follows objects "
            "that boxes and points show; on CPUs too. variant= names the model of the table that "
            f"does it; {EMBEDDED} by default."
        ),
        "tags": [*TAGS, "video", "zero-shot"],
    }


def config_manifest() -> dict[str, Any]:
    """For ``fiftyone.config.model_zoo_manifest_paths``."""
    return {
        "models": [
            {
                **describe(VARIANTS[name]),
                "manager": {
                    "type": "fiftyone_esam3.manager.WeightsManager",
                    "config": {"model": name},
                },
                "default_deployment_config_dict": {
                    "type": "fiftyone_esam3.model.EfficientSam3",
                    "config": {"variant": name},
                },
            }
            for name in list_models()
        ]
        + [
            {
                **describe_video(),
                "manager": {
                    "type": "fiftyone_esam3.manager.WeightsManager",
                    "config": {"model": VIDEO_MODEL},
                },
                "default_deployment_config_dict": {
                    "type": "fiftyone_esam3.video.EfficientSam3Video",
                    "config": {"variant": EMBEDDED},
                },
            }
        ]
    }


def remote_manifest() -> dict[str, Any]:
    """For ``fiftyone.zoo.register_zoo_model_source``."""
    return {
        "name": REMOTE_NAME,
        "models": [*(describe(VARIANTS[name]) for name in list_models()), describe_video()],
    }


MANIFESTS = {"manifest.json": remote_manifest, "zoo_manifest.json": config_manifest}


def text(file: str) -> str:
    """What a manifest's file should hold."""
    return json.dumps(MANIFESTS[file](), indent=1) + "\n"


if __name__ == "__main__":
    for file in MANIFESTS:
        (HERE / file).write_text(text(file), encoding="utf-8")
