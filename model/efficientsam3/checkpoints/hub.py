"""Weight files of the Hugging Face hub: which are on this machine, and downloading them.

This module does not import torch.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from ..errors import CheckpointError, WeightsNotFoundError
from ..variants import VARIANTS, WEIGHTS_FILE, Packaged, Weights, find_variant


def cached_models() -> list[str]:
    """Names of the models whose weights are on this machine: in the hub's cache or the package."""
    return [name for name, variant in VARIANTS.items() if _is_here(variant.weights)]


def _is_here(source: Weights | Packaged) -> bool:
    if isinstance(source, Packaged):
        return source.is_here
    return _cached_file(source) is not None


def _cached_file(source: Weights) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(source.repo, source.path, revision=source.revision)
    return Path(file) if isinstance(file, str) else None


def download(name: str, *, endpoint: str | None = None) -> Path:
    """The weight file of a model: from the package, the hub's cache, or the hub.

    An interrupted download continues where it stopped. A downloaded file is compared with the
    sha256 that is pinned in the table, or else with the hash that the hub states (sha256, or git's
    sha1 for small files); a cached one is used without network access.

    Args:
        name: A name of ``list_models()``.
        endpoint: Another address of the hub; the environment's ``HF_ENDPOINT`` works too.

    Returns:
        The path of the file.

    Raises:
        WeightsNotFoundError: The machine is offline, or the hub refuses access; the message says
            what to do.
        CheckpointError: The file that arrived is not the hub's.
    """
    variant = find_variant(name)
    source = variant.weights
    if isinstance(source, Packaged):
        return source.find() / WEIGHTS_FILE
    cached = _cached_file(source)
    if cached is not None:
        return cached
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    # The base of huggingface_hub's HTTP errors is its HTTP client's, which also has the errors of
    # broken connections.
    connection_error: type[Exception] = HfHubHTTPError.__bases__[0]
    page = f"{endpoint or os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/{source.repo}"
    try:
        path = Path(
            hf_hub_download(source.repo, source.path, revision=source.revision, endpoint=endpoint)
        )
        expected = source.sha256 or _stated_hash(path, source, endpoint)
    except GatedRepoError as error:
        raise WeightsNotFoundError(
            f"{variant.name}: {source.repo} is gated; {page} says how to get access",
            f". {source.how_to_get_access or ''}",
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, connection_error, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise WeightsNotFoundError(
            f"the weights of {variant.name} are not on this machine, and the hub did not give "
            f"them ({reason}). Where there is a network, get "
            f"{page}/resolve/{source.revision}/{source.path}",
            f", and pass checkpoint='<path of {Path(source.path).name}>'.",
        ) from error
    if expected is not None:
        _verify(path, expected, "this version expects" if source.sha256 else "the hub says")
    return path


def _stated_hash(path: Path, source: Weights, endpoint: str | None) -> str | None:
    """The hash that the hub states for a file that has just arrived; None: it states none.

    The hub's cache names a file by this hash, and links to it. Where the file system has no links,
    the hub is asked. Then a file that cannot be compared does not stay.
    """
    if path.is_symlink():  # not resolved further: the cache can have links to a store of all files
        stated: str | None = Path(os.readlink(path)).name
    else:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        commit = path.parents[len(Path(source.path).parts) - 1].name
        try:
            url = hf_hub_url(source.repo, source.path, revision=commit, endpoint=endpoint)
            stated = get_hf_file_metadata(url).etag
        except BaseException:
            path.unlink()
            raise
    is_hash = stated is not None and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", stated)
    return stated if is_hash else None


def _verify(path: Path, expected: str, whose: str) -> None:
    """Compare a file with a hash, and delete it if it differs.

    Args:
        path: The file.
        expected: 64 hexadecimal digits: its sha256. 40: the sha1 that git has for it, which the
            hub states for files that are not in git's store of large files.
        whose: Who states the hash, for the message.
    """
    blob = path.resolve()
    name, hasher = "sha256", hashlib.sha256()
    if len(expected) == 40:
        name = "sha1 (of git)"
        hasher = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    with blob.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    digest = hasher.hexdigest()
    if digest == expected:
        return
    links = [path, path.parent / os.readlink(path)] if path.is_symlink() else [path]
    for file_or_link in {blob, *links}:
        file_or_link.unlink(missing_ok=True)
    raise CheckpointError(
        f"{path.name} arrived with {name} {digest}, but {whose} {expected}. The copy was deleted: "
        "load the model again to download it again."
    )
