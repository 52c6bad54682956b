"""``manifest.json``, which says what an exported folder holds and how it is run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

FORMAT = 2
"""Version of the layout of exported folders."""

MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
REQUIREMENTS_FILE = "requirements.txt"

BACKENDS = ("onnx", "openvino")
"""Backends of the folders that ``load`` runs."""

TRACKER_GRAPHS = ("look", "recall", "remember", "pointer", "given_mask")
"""Graphs that only tracking by the video memory needs."""


@dataclass(frozen=True)
class Manifest:
    """What an exported folder holds.

    Attributes:
        name: The model's name.
        backend: "onnx", "openvino" or "coreml".
        precision: "float32", "float16", "bfloat16" or "int8".
        speed: "exact" or "fast", see ``efficientsam3.load``.
        version: Version of efficientsam3 that wrote it.
        standard: The files' own standard, such as {"opset": 18}.
        graphs: By name: file, inputs and outputs with dtype and shape (-1 where it is free).
        files: Bytes of each file.
        tokenizer: Its file, the tokens of a phrase, and the ids of start, end and padding.
        preprocessing: Resolution, mean, standard deviation, and how an image is resized.
        postprocessing: Defaults of threshold and nms.
        abilities: What the model can do.
        missing: For other abilities the parts that its weights lack.
        config: The model's whole configuration.
        agreement: Measured agreement with PyTorch in float32.
    """

    name: str
    backend: str
    precision: str
    speed: str
    version: str
    standard: dict[str, Any]
    graphs: dict[str, dict[str, Any]]
    files: dict[str, int]
    tokenizer: dict[str, Any]
    preprocessing: dict[str, Any]
    postprocessing: dict[str, Any]
    abilities: list[str]
    missing: dict[str, list[str]]
    config: dict[str, Any]
    agreement: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the file.

        Args:
            folder: The exported folder.
        """
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def is_exported(folder: Path) -> bool:
    """Whether a folder holds an exported model.

    Args:
        folder: Any path.
    """
    return (folder / MANIFEST_FILE).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of an exported folder.

    Args:
        folder: The folder.

    Raises:
        CheckpointError: It is damaged, of another version, or a file is missing or incomplete.
    """
    path = folder / MANIFEST_FILE
    again = "export the model again with `efficientsam3 export`"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values.pop("format")
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{path} is no manifest of an exported model; {again}") from error
    if found != FORMAT:
        raise CheckpointError(
            f"{folder} has format {found} and this version of efficientsam3 reads format {FORMAT}; "
            f"{again} of this version, or install the version that wrote it "
            f"({values.get('version', 'not known')})"
        )
    try:
        manifest = Manifest(**values)
    except TypeError as error:
        names = ", ".join(f.name for f in fields(Manifest))
        raise CheckpointError(f"{path} does not have the fields {names}; {again}") from error
    if manifest.backend == "coreml":
        raise CheckpointError(
            f"{folder} was exported for Core ML, which runs in apps on Apple's systems and not "
            "here; export the model for OpenVINO or ONNX Runtime to run it with efficientsam3"
        )
    if manifest.backend not in BACKENDS:
        raise CheckpointError(f"{path} names the unknown backend {manifest.backend!r}; {again}")
    for file, size in manifest.files.items():
        there = (folder / file).stat().st_size if (folder / file).is_file() else None
        if there != size:
            state = "is missing" if there is None else f"has {there} bytes instead of {size}"
            raise CheckpointError(f"{folder / file} {state}: copy the folder again, or {again}")
    return manifest
