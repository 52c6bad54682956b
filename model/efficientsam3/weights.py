"""Weights: find, download, verify, read, rename, load strictly; and write again."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import layout
from .build import OPTIONAL, REQUIRED, TEXTS, MemoryConfig, ModelConfig, StudentConfig, build
from .errors import CheckpointError, WeightsNotFoundError
from .nn.detector import Detector
from .variants import CONFIG_FILE, WEIGHTS_FILE, Packaged, Variant, find_variant

if TYPE_CHECKING:
    from collections.abc import Iterable

State = dict[str, Tensor]

FORMAT = 1

MEANING = {
    "trunk": "image encoder",
    "neck": "feature pyramid",
    "text": "text encoder",
    "fusion": "fusion encoder",
    "decoder": "decoder",
    "scoring": "scoring",
    "geometry": "geometry encoder",
    "masks": "mask head",
    "interactive": "interactive head",
    "interactive_neck": "second neck",
    "propagation_neck": "third neck",
    "memory": "tracker",
    "multiplex": "SAM3.1 tracker",
}
"""Groups of weights, as errors call them."""


# Files --------------------------------------------------------------------------------------


def read_state(path: str | Path) -> State:
    """Read a weight file without running anything in it.

    Args:
        path: ``.safetensors``, or a PyTorch file of tensors, bare or in a "model" or
            "state_dict" entry; what a "preserved_base_model" entry adds is read too.

    Returns:
        The tensors by the file's own keys; large ones stay on disk until touched.

    Raises:
        WeightsNotFoundError: there is no such file.
        CheckpointError: it is damaged, holds more than tensors, or no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsNotFoundError(f"there is no weight file at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(_damaged(path, error)) from error
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK" and start[:1] != b"\x80":
        raise CheckpointError(_damaged(path, ValueError("not the start of a PyTorch file")))
    try:
        content = _torch_load(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, and loading it could run code of its author: "
            f"{_first_line(error)}. Ask its author for a .safetensors file, or for a file of "
            "tensors alone."
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(_damaged(path, error)) from error
    # Fine-tuned files keep what was not trained beside what was.
    rest = content.get("preserved_base_model") if isinstance(content, dict) else None
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if isinstance(rest, dict) and isinstance(content, dict):
        trained = {layout.canonical(k) for k in content}
        content |= {k: v for k, v in rest.items() if layout.canonical(k) not in trained}
    tensors = isinstance(content, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    )
    if not tensors or not content:
        raise CheckpointError(
            f"{path} holds {_describe(content)}, not a dictionary of tensors by name"
        )
    return content


def _torch_load(path: Path) -> Any:
    # A zip archive can stay on disk; the format before 2020 cannot.
    mapped = zipfile.is_zipfile(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)


def _damaged(path: Path, error: BaseException) -> str:
    return (
        f"{path} ({path.stat().st_size:,} bytes) is damaged or cut short: {_first_line(error)}. "
        "Delete it and download it again."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        odd = [k for k, v in content.items() if not isinstance(v, Tensor)]
        return f"a dictionary with {', '.join(map(repr, odd[:5])) or 'nothing'}"
    return f"a {type(content).__name__}"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of ``path`` when whole: no half-written file,
    and no change under the feet of who has the old one mapped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


# What a file holds --------------------------------------------------------------------------


@dataclass(frozen=True)
class Contents:
    """What a checkpoint in upstream's layout holds, read off its keys and shapes.

    state: by canonical key. vision, text: encoder names, None where the file has none.
    rows: of the text encoder's position table. release: "3.0" or "3.1".
    """

    path: Path
    state: State
    vision: str | None
    text: str | None
    rows: int
    release: str

    @classmethod
    def read(cls, path: str | Path) -> Contents:
        """Read and recognise a file; errors as ``read_state``."""
        state = {layout.canonical(k): v for k, v in read_state(path).items()}
        release = "3.1" if any(".interactive_convs." in k for k in state) else "3.0"
        text, rows = _recognise_text(state)
        return cls(Path(path), state, _recognise_vision(state), text, rows, release)

    def renamed(self) -> State:
        """The weights by our keys.

        Raises:
            CheckpointError: keys that belong to no known part.
        """
        rename = layout.to_ours(self.vision or "sam3", self.text or "mobileclip-s0", self.release)
        out, unknown = {}, []
        for key, value in self.state.items():
            if layout.ignored(key, self.release, student=self.vision not in (None, "sam3")):
                continue
            name = rename(key)
            if name is None:
                unknown.append(key)
            else:
                out[name] = value
        if unknown:
            raise CheckpointError(
                f"{self.path} has {len(unknown)} weights that no EfficientSAM3 model has: "
                f"{_some(unknown)}. Is it a checkpoint of EfficientSAM3, SAM3-LiteText or SAM3?"
            )
        return out


_TRUNK = "backbone.vision_backbone.trunk."
_FAMILIES = {
    # a key that only this family has, and sizes by the width that the projection reads
    "repvit": ("model.backbone.model.features.0.0.", {384: "m0.9", 512: "m1.1", 640: "m2.3"}),
    "tinyvit": ("model.backbone.model.patch_embed.seq.", {320: "5m", 448: "11m", 576: "21m"}),
    "efficientvit": ("model.backbone.model.input_stem.", {128: "b0", 256: "b1", 384: "b2"}),
}


def _recognise_vision(state: State) -> str | None:
    head = state.get(_TRUNK + "model.head.0.weight")
    for family, (mark, sizes) in _FAMILIES.items():
        if any(k.startswith(_TRUNK + mark) for k in state):
            size = sizes.get(head.shape[1]) if head is not None else None
            if size is None:
                raise CheckpointError(
                    f"the file has a {family} image encoder but no projection head "
                    f"({_TRUNK}model.head.0.weight) of {', '.join(map(str, sizes))} inputs"
                )
            return f"{family}-{size}"
    # Last: some student files still carry SAM3's encoder beside their own.
    return "sam3" if _TRUNK + "patch_embed.proj.weight" in state else None


def _recognise_text(state: State) -> tuple[str | None, int]:
    text = "backbone.language_backbone.encoder."
    if text + "token_embedding.weight" in state:
        table = state.get(text + "positional_embedding")
        return "sam3", table.shape[0] if table is not None else 0
    words = state.get(text + "embedding_layer.weight")
    if words is None:
        return None, 0
    table = state.get(text + "positional_embedding.pos_embed.pos_embed")
    rows = table.shape[2] if table is not None else 0
    if words.shape[1] == 768:
        return "mobileclip2-l", rows
    mixer = any(k.startswith(text) and ".token_mixer." in k for k in state)
    return ("mobileclip-s0" if mixer else "mobileclip-s1"), rows


def _some(names: Iterable[str], most: int = 6) -> str:
    names = sorted(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _part(key: str) -> str:
    return key.split(".", 1)[0]


# Loading ------------------------------------------------------------------------------------


def load_upstream(
    checkpoint: str | Path,
    variant: Variant | None = None,
    *,
    base: str | Path | None = None,
    text: str | None = None,
    context: int | None = None,
) -> tuple[ModelConfig, Detector]:
    """Load a file in upstream's layout, strictly.

    Args:
        checkpoint: a released file, or one of the same keys.
        variant: what it should be; None: whatever it is.
        base: a second file, for groups of weights that the first lacks wholly.
        text: the text encoder to use, if ``base`` has another than ``checkpoint``.
        context: tokens of a phrase, at most the rows of the file's position table.

    Raises:
        CheckpointError: another model's file, unknown or missing weights, wrong shapes.
    """
    if text is not None:
        text = text.lower()
        if text not in TEXTS:
            raise CheckpointError(f"unknown text encoder {text!r}; known: {', '.join(TEXTS)}")
    first = Contents.read(checkpoint)
    sources = [first, *([Contents.read(base)] if base is not None else [])]
    vision = _agree(sources, "vision", variant.vision if variant else None, "image encoder")
    words = _agree(sources, "text", text, "text encoder")
    state: State = {}
    for source in sources:
        have = {_part(k) for k in state}
        for key, value in source.renamed().items():
            part = _part(key)
            wanted = {"trunk": source.vision == vision, "text": source.text == words}
            if part not in have and wanted.get(part, True):
                state[key] = value
    rows = next(s.rows for s in sources if s.text == words)
    context = _context(context, rows, words, variant, first.path)
    table = state.get("text.positions")
    if table is not None:
        state["text.positions"] = table[..., :context, :].clone()
    scales = (4.0, 2.0, 1.0) if first.release == "3.1" else (4.0, 2.0, 1.0, 0.5)
    if first.release == "3.0" and not any(k.startswith("neck.levels.3.") for k in state):
        scales = scales[:3]
    if len(scales) == 3:  # a level that nobody reads, in one neck of two
        state = {k: v for k, v in state.items() if "_neck.levels.3." not in k}
    have = {_part(k) for k in state}
    parts = tuple(p for p in OPTIONAL if p in have)
    config = ModelConfig(vision, words, context, parts, scales, memory=_memory_of(state))
    where = " and ".join(str(s.path) for s in sources)
    return config, assemble(config, state, where)


def _memory_of(state: State) -> MemoryConfig:
    """The numbers of a tracker, read off its weights; SAM3's where there is none."""

    def layers(prefix: str) -> int:
        return len({k[len(prefix) :].split(".", 1)[0] for k in state if k.startswith(prefix)})

    depth = layers("memory.attention.layers.")
    if not depth:
        return MemoryConfig()
    latents, placed = (state.get(f"memory.perceiver.{n}") for n in ("latents", "latents_2d"))
    if latents is None and placed is None:
        return MemoryConfig(depth)
    return MemoryConfig(
        depth,
        0 if latents is None else len(latents),
        0 if placed is None else round(len(placed) ** 0.5),
        layers("memory.perceiver.layers."),
    )


def _agree(sources: list[Contents], field: str, wanted: str | None, meaning: str) -> str:
    """The encoder to use: the one that is wanted, or the first file's."""
    found = [e for s in sources if (e := getattr(s, field)) is not None]
    where = " and ".join(str(s.path) for s in sources)
    if not found:
        raise CheckpointError(
            f"{where} has no {meaning}. Pass base=... with a file that has one, "
            "such as a full checkpoint of the same release."
        )
    if wanted is None:
        return found[0]
    if wanted not in found:
        raise CheckpointError(
            f"{where} has the {meaning} {' and '.join(found)}, not {wanted}. "
            f"Load it as a model with {found[0]}, or pass a file with {wanted}."
        )
    return wanted


def _context(asked: int | None, rows: int, text: str, variant: Variant | None, path: Path) -> int:
    if asked is None:
        fits = variant is not None and variant.text == text
        return min(variant.context, rows) if fits and variant else rows
    if not 3 <= asked <= rows:
        raise CheckpointError(
            f"context={asked}, but the text encoder in {path} has positions for {rows} tokens: "
            f"choose 3 to {rows}"
        )
    return asked


def assemble(config: ModelConfig, state: State, where: str) -> Detector:
    """A model of ``config`` with ``state`` in it; tensors are taken over, not copied.

    Args:
        state: by our keys. where: what errors call the source.

    Raises:
        CheckpointError: a missing, left-over or misshapen weight, each by name.
    """
    net = build(config, "meta")
    expected = net.state_dict()
    learned = {k: v for k, v in expected.items() if not layout.DERIVED.search(k)}
    missing = learned.keys() - state.keys()
    for part in (*REQUIRED, *config.parts):
        lost = {k for k in missing if _part(k) == part}
        whole = {k for k in learned if _part(k) == part}
        if lost == whole and part in REQUIRED:
            raise CheckpointError(
                f"{where} has no {MEANING[part]} (group {part!r}). "
                "Pass base=... with a file that has it."
            )
        if lost:
            raise CheckpointError(
                f"{where} has only part of the {MEANING[part]}: {len(lost)} of {len(whole)} "
                f"weights are missing: {_some(lost)}. The file is cut or of another model."
            )
    left = state.keys() - expected.keys()
    if left:
        raise CheckpointError(
            f"{where} has {len(left)} weights that {_title(config)} has not: {_some(left)}"
        )
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise CheckpointError(
                f"{where}: {key} is {tuple(value.shape)}, but {_title(config)} needs "
                f"{tuple(expected[key].shape)}"
            )
        if value.is_floating_point() and value.dtype != torch.float32:
            state[key] = value.float()
    for key, value in expected.items():
        if key not in state:  # batch-norm counters
            state[key] = torch.zeros(value.shape, dtype=value.dtype)
    net.load_state_dict(state, strict=True, assign=True)
    _compute_derived(net)
    return net.eval().requires_grad_(False)


def _title(config: ModelConfig) -> str:
    vision = config.vision
    if isinstance(vision, StudentConfig):
        vision = f"a {vision.encoder.split('-')[0]} of its own sizes"
    elif not isinstance(vision, str):
        vision = "a ViT"
    text = config.text if isinstance(config.text, str) else config.text.kind
    return f"a model of {vision} and {text} with context {config.context}"


def _compute_derived(net: nn.Module) -> None:
    """Fill the buffers that follow from shapes: no file has them, "meta" has no values."""
    for module in net.modules():
        empty = [n for n, b in module._buffers.items() if b is not None and b.is_meta]
        for name in empty:
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")  # type: ignore[arg-type]
        if empty:
            module.init_non_persistent_buffers()  # type: ignore[operator]  # timm's name for it


# Our own format -----------------------------------------------------------------------------


def load_folder(folder: str | Path) -> tuple[str, ModelConfig, Detector]:
    """Load what ``save_folder`` wrote: (name, config, model).

    Raises:
        WeightsNotFoundError, CheckpointError: as the message says.
    """
    folder = Path(folder)
    name, config = _read_config(folder)
    state = read_state(folder / WEIGHTS_FILE)
    return name, config, assemble(config, state, str(folder))


def _read_config(folder: Path) -> tuple[str, ModelConfig]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise WeightsNotFoundError(
            f"{folder} has no {CONFIG_FILE}: it is not a folder that model.save(...) wrote"
        )
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise CheckpointError(
                f"{path} is of format {content['format']}; this version reads {FORMAT}. "
                "Update efficientsam3."
            )
        config = ModelConfig.from_dict(content["model"])
        name = str(content["name"])
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a model's configuration: {error!r}") from error
    return name, config


def save_folder(
    folder: str | Path,
    name: str,
    config: ModelConfig,
    net: Detector,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write ``model.safetensors`` and ``config.json``; each appears only when whole.

    Args:
        dtype: of matrices and kernels on disk: float32, float16 or bfloat16. They are loaded to
            float32. What has one axis (norms, biases, statistics) stays float32: it is small,
            and rounding hurts it most.

    Raises:
        CheckpointError: a weight is too large for ``dtype``.
    """
    folder = Path(folder)
    state = rounded(net.state_dict(), dtype)
    with replacing(folder / WEIGHTS_FILE) as path:
        save_file(state, path, {"format": "pt"})
    content = {
        "format": FORMAT,
        "name": name,
        "parameters": count_parameters(net),
        "model": config.to_dict(),
    }
    with replacing(folder / CONFIG_FILE) as path:
        path.write_text(json.dumps(content, indent=1) + "\n")


def rounded(state: State, dtype: torch.dtype) -> State:
    """Weights as ``save_folder`` stores them in ``dtype``."""
    out = {}
    for key, value in state.items():
        whole = value.detach()
        if value.is_floating_point() and value.ndim > 1:
            value = value.detach().to(dtype)
            if bool((~value.isfinite() & whole.isfinite()).any()):
                raise CheckpointError(
                    f"{key} has values up to {whole.abs().max():.3g}, too large for "
                    f"{str(dtype).removeprefix('torch.')}: save it in bfloat16 or float32"
                )
        out[key] = value.contiguous()
    return out


def count_parameters(net: nn.Module) -> int:
    """What was learned, statistics of norms left out."""
    return sum(p.numel() for p in net.parameters())


def save_upstream(path: str | Path, config: ModelConfig, net: Detector) -> None:
    """Write a file that upstream's loaders read.

    Raises:
        CheckpointError: encoders that upstream does not have.
    """
    with replacing(Path(path)) as temporary:
        torch.save({"model": upstream_state(config, net.state_dict())}, temporary)


def upstream_state(config: ModelConfig, state: State) -> State:
    """Our weights by upstream's keys, as released files spell them."""
    if not isinstance(config.vision, str) or not isinstance(config.text, str):
        raise CheckpointError(
            "upstream has no model of these encoders; save it in our own format instead"
        )
    release = "3.1" if {"multiplex", "propagation_neck"} & set(config.parts) else "3.0"
    rename = layout.to_upstream(config.vision, config.text, release)
    out = {}
    for key, value in state.items():
        name = rename(key)
        if name is None:
            raise CheckpointError(f"upstream has no name for {key}")
        out[layout.full_key(name)] = value
    return out


def write_untrained(name: str, path: str | Path, *, seed: int = 0) -> Path:
    """Write deterministic, untrained weights of a model of the table in upstream's layout.

    For demonstrations and tests where real weights cannot be had: masks are noise.
    """
    variant = find_variant(name)
    config = config_of(variant)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(config)
    with torch.no_grad():
        for key, value in net.named_parameters():
            # Torch's own scale lets activations fade: every mask would be empty.
            if key.endswith("bias"):
                value.mul_(0.1)
            elif value.ndim > 1 and key.endswith("weight") and "embed" not in key:
                value.mul_(3**0.5)
    save_upstream(path, config, net)
    return Path(path)


def config_of(variant: Variant) -> ModelConfig:
    """The numbers of a row of the table, with every part that its file is expected to have.

    Raises:
        WeightsNotFoundError: a packaged model, whose numbers lie beside its weights, is missing.
    """
    if isinstance(variant.weights, Packaged):
        return _read_config(variant.weights.find())[1]
    parts: tuple[str, ...] = ("geometry", "masks")
    if "interactive" in variant.abilities:
        parts += ("interactive", "interactive_neck")
        parts += ("propagation_neck", "multiplex") if variant.release == "3.1" else ("memory",)
    scales = (4.0, 2.0, 1.0) if variant.release == "3.1" else (4.0, 2.0, 1.0, 0.5)
    parts = tuple(p for p in OPTIONAL if p in parts)
    return ModelConfig(variant.vision, variant.text, variant.context, parts, scales)


def without(config: ModelConfig, *parts: str) -> ModelConfig:
    """The same numbers without some optional parts."""
    return replace(config, parts=tuple(p for p in config.parts if p not in parts))


# The hub ------------------------------------------------------------------------------------


def download(name: str, *, endpoint: str | None = None) -> Path:
    """The file of a model of the table: from the package, the Hugging Face cache or the hub.

    A connection that breaks is taken up where it broke. A file that has just arrived is
    compared with the hub's own sha256; a cached one is used as it is, without network.

    Args:
        endpoint: another address of the hub (also: the environment's ``HF_ENDPOINT``).

    Raises:
        WeightsNotFoundError: offline, or access not granted; the message says what to do.
        CheckpointError: what arrived is not what the hub has.
    """
    variant = find_variant(name)
    source = variant.weights
    if isinstance(source, Packaged):
        return source.find() / WEIGHTS_FILE
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    # Of the HTTP client that huggingface_hub uses: it lets broken connections through.
    broken: type[Exception] = HfHubHTTPError.__bases__[0]
    place = (source.repo, source.path)
    cached = try_to_load_from_cache(*place, revision=source.revision)
    if isinstance(cached, str):
        return Path(cached)
    page = f"{endpoint or os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/{source.repo}"
    by_hand = (
        f"Where there is a network, get {page}/resolve/{source.revision}/{source.path}, and pass "
        f"checkpoint='<path of {Path(source.path).name}>'."
    )
    try:
        path = Path(hf_hub_download(*place, revision=source.revision, endpoint=endpoint))
    except GatedRepoError as error:
        raise WeightsNotFoundError(
            f"{variant.name}: {source.repo} is gated. {source.how_to_get_access or ''}".strip()
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, broken, OSError) as error:
        raise WeightsNotFoundError(
            f"the weights of {variant.name} are not on this machine, and the hub did not give "
            f"them ({_first_line(error)}). {by_hand}"
        ) from error
    _verify(path)
    return path


def _verify(path: Path) -> None:
    """Compare with the sha256 by which the hub, and so its cache, names a large file."""
    blob = path.resolve()
    if len(blob.name) != 64:  # small files are named by git's own hash
        return
    hasher = hashlib.sha256()
    with blob.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    digest = hasher.hexdigest()
    if digest != blob.name:
        blob.unlink()
        path.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path.name} arrived with sha256 {digest}, but the hub says {blob.name}. The copy "
            "was deleted: load the model again to download it again."
        )
