"""The state of a run that is not the optimiser's: tensors and random numbers."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from . import checkpoint


def buffers_of(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to the module's state."""
    state = module.state_dict(keep_vars=True)
    return {name: b for name, b in module.named_buffers() if name in state}


def unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of their own: safetensors holds no two names of one memory."""
    out, seen = {}, set()
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        if value.data_ptr() in seen:
            value = value.clone()
        seen.add(value.data_ptr())
        out[name] = value
    return out


def copy_in(path: Path, targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Fill tensors with a checkpoint's of the same names and shapes.

    Raises:
        CheckpointError: names or shapes differ; ``path`` is the checkpoint's.
    """
    shapes = {k: tuple(v.shape) for k, v in targets.items()}
    checkpoint.compare(path, {k: tuple(v.shape) for k, v in values.items()}, shapes)
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(values[name])


def digest(tensors: Iterable[Tensor]) -> str | None:
    """Tells frozen weights from others, cheaply; None without any."""
    value: int | None = None
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        value = zlib.crc32(flat.numpy().data, value or 0)
    return None if value is None else f"{value:08x}"


class Undo:
    """What a forward pass changes besides gradients: norms' statistics, random states."""

    def __init__(self, buffers: Mapping[str, Tensor]) -> None:
        self._live = list(buffers.values())
        self._kept = [v.clone() for v in self._live]
        self._random = Random.now()

    def keep(self) -> None:
        """This is where to go back to."""
        if self._live:
            torch._foreach_copy_(self._kept, self._live)
        self._random = Random.now()

    def back(self, *, random_too: bool = False) -> None:
        if self._live:
            torch._foreach_copy_(self._live, self._kept)
        if random_too:
            self._random.apply()


# Random numbers -----------------------------------------------------------------------------


class Random(NamedTuple):
    """States of the generators of torch, numpy, Python and this process's GPU."""

    torch: Tensor
    numpy: Any
    python: Any
    cuda: Tensor | None

    @classmethod
    def now(cls) -> Random:
        """As they are."""
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        return cls(
            torch.get_rng_state(),
            np.random.get_state(legacy=True),
            random.getstate(),
            torch.cuda.get_rng_state() if on_gpu else None,
        )

    def apply(self) -> None:
        """Go on from here."""
        torch.set_rng_state(self.torch)
        np.random.set_state(self.numpy)
        random.setstate(self.python)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)

    def packed(self) -> dict[str, Any]:
        """As tensors and plain values, for a checkpoint."""
        name, keys, *rest = self.numpy
        version, words, normal = self.python
        return {
            "torch": self.torch,
            "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
            "python": [version, torch.tensor(words), normal],
            "cuda": self.cuda,
        }

    @classmethod
    def unpacked(cls, values: Mapping[str, Any]) -> Random:
        """The inverse of ``packed``."""
        name, keys, *rest = values["numpy"]
        version, words, normal = values["python"]
        return cls(
            values["torch"],
            (name, keys.numpy().astype(np.uint32), *rest),
            (version, tuple(words.tolist()), normal),
            values["cuda"],
        )


def seed_all(seed: int, rank: int) -> None:
    """Start the generators of this rank."""
    words = np.random.SeedSequence((seed, rank)).generate_state(3).tolist()
    torch.manual_seed(words[0])
    np.random.seed(words[1])
    random.seed(words[2])


@contextmanager
def kept_random() -> Iterator[None]:
    """Whatever is drawn inside, the generators go on as if it had not been."""
    state = Random.now()
    try:
        yield
    finally:
        state.apply()
