"""The options by which commands are told what to find."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import PromptError
from .common import UsageError

ConceptOption = Annotated[
    list[str] | None,
    typer.Option(
        "--concept",
        "-c",
        help='A phrase to find, or a class with its phrases: "vehicle=car,truck". Repeat it for '
        "several.",
    ),
]
ConceptsFileOption = Annotated[
    Path | None,
    typer.Option(
        "--concepts-file",
        help="Phrases or classes: .yaml or .json, a list of phrases or a mapping from classes to "
        "phrases; .txt, a --concept a line.",
    ),
]
NmsOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Drop an instance that overlaps a better one of its class by more than this.",
    ),
]
ClassAgnosticOption = Annotated[
    bool,
    typer.Option("--class-agnostic", help="Compare instances of different classes too."),
]


TileOption = Annotated[
    str | None,
    typer.Option(
        metavar="TILE",
        help="For large pictures: read tiles too, and join what their borders cut. auto, the side "
        "of a tile in pixels, or side,overlap.",
    ),
]


class OverlapMetric(str, Enum):
    """How the overlap of masks is measured; see ``ImageModel.segment``."""

    iou = "iou"
    iom = "iom"


OverlapMetricOption = Annotated[
    OverlapMetric,
    typer.Option(help="iou: intersection over union. iom: over the smaller of the two masks."),
]


def parse_concepts(
    concepts: Sequence[str] | None, file: Path | None = None
) -> list[str] | dict[str, list[str]] | None:
    """Parse the values of ``--concept`` and ``--concepts-file``.

    Args:
        concepts: Phrases, and classes with their phrases as "class=phrase,phrase".
        file: A file of phrases or classes, whose concepts come first.

    Returns:
        Phrases, or phrases by class where there are classes; None where nothing is named.

    Raises:
        UsageError: A class has no phrase, or the file is not one of concepts.
        PromptError: A phrase is wrong.
    """
    if not concepts and file is None:
        return None
    from ..concepts import read_written

    classes = {} if file is None else _read_file(file)
    for value in concepts or ():
        _add(classes, value)
    return read_written(classes)


def _add(classes: dict[str, list[str]], value: str) -> None:
    from ..concepts import add_written

    try:
        add_written(classes, value)
    except PromptError as error:
        raise UsageError(str(error)) from error


def _read_file(path: Path) -> dict[str, list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"there is no file of concepts at {path}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text in UTF-8; save it as UTF-8") from error
    classes: dict[str, list[str]] = {}
    if path.suffix.lower() == ".txt":
        for line in text.splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                _add(classes, line.strip())
    else:
        classes = _classes_of(_parse(path, text), path)
    if not classes:
        raise UsageError(f"{path} names no concept")
    return classes


def _parse(path: Path, text: str) -> Any:
    if path.suffix.lower() == ".json":
        try:
            return json.loads(text, object_pairs_hook=_unique)
        except json.JSONDecodeError as error:
            raise UsageError(f"{path} is not JSON: {error}") from error
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise UsageError(f"the name of a file of concepts ends in .yaml, .json or .txt; got {path}")
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UsageError(f"the class {repeated!r} is given twice; join its phrases")
    return dict(pairs)


def _classes_of(content: Any, path: Path) -> dict[str, list[str]]:
    """Phrases by class of a parsed file, in which text is not yet normalized."""
    if isinstance(content, list):
        content = dict.fromkeys(_texts(content, path))
    if not isinstance(content, dict):
        raise UsageError(
            f"{path} is not a list of phrases, nor a mapping from classes to phrases such as "
            "vehicle: [car, truck]"
        )
    return {
        name: _texts([name] if phrases is None else phrases, path)
        for name, phrases in zip(_texts(list(content), path), content.values(), strict=True)
    }


def _texts(values: Any, path: Path) -> list[str]:
    values = [values] if isinstance(values, str) else values
    if not isinstance(values, list):
        raise UsageError(f"phrases are text or a list of texts; {path} has {values!r}")
    for value in values:
        if not isinstance(value, str):
            raise UsageError(f"a phrase is text; {path} has {value!r}: put it in quotes")
    return values
