"""Weight files in parts, as Hugging Face transformers writes large models: an index names them."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from ..data.json_records import read_json
from ..errors import CheckpointError

INDEX_SUFFIX = ".index.json"
"""End of the name of an index, such as ``model.safetensors.index.json``."""


def is_index(path: str | os.PathLike[str]) -> bool:
    """Whether a file is the index of a weight file in parts, by its name.

    Args:
        path: The file.
    """
    return Path(path).name.endswith(INDEX_SUFFIX)


def read_index(path: Path) -> dict[Path, set[str]]:
    """Read which parts there are.

    Args:
        path: The index.

    Returns:
        The keys of each part.

    Raises:
        CheckpointError: It is no index, or names a file in another folder.
    """
    content = read_json(path, CheckpointError)
    keys = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(keys, dict) or not keys:
        raise CheckpointError(
            f'{path} is not an index of weights: it has no "weight_map", which names the file of '
            "each weight"
        )
    parts: dict[Path, set[str]] = defaultdict(set)
    for key, name in keys.items():
        if not isinstance(name, str) or not name or Path(name).name != name or "\0" in name:
            raise CheckpointError(
                f"{path} names the file {name!r} for {key}; parts are files in the folder of the "
                "index"
            )
        parts[path.parent / name].add(key)
    return dict(parts)


def weight_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files that are read for a weight file.

    Args:
        path: A weight file, or an index.

    Returns:
        The file itself; after an index that can be read, its parts.
    """
    path = Path(path)
    if not is_index(path) or not path.is_file():
        return [path]
    return [path, *sorted(read_index(path))]
