"""The state of a run beside the optimizer's: tensors and random number generators."""

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


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of a module that its state dict holds, by name.

    Args:
        module: The module.
    """
    state = module.state_dict(keep_vars=True)
    return {name: b for name, b in module.named_buffers() if name in state}


def separate_memory(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors on the CPU where two share memory, which safetensors refuses.

    Args:
        state: Tensors by name.

    Returns:
        Contiguous tensors on the CPU, by the same names.
    """
    out, pointers = {}, set()
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        if value.data_ptr() in pointers:
            value = value.clone()
        pointers.add(value.data_ptr())
        out[name] = value
    return out


def copy_tensors(path: Path, targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Fill tensors in place with those of a checkpoint.

    Args:
        path: The checkpoint, for messages.
        targets: Tensors to fill, by name.
        values: The checkpoint's, of the same names and shapes.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    shapes = {k: tuple(v.shape) for k, v in targets.items()}
    checkpoint.require_same(path, {k: tuple(v.shape) for k, v in values.items()}, shapes)
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(values[name])


def weights_checksum(tensors: Iterable[Tensor]) -> str | None:
    """A short checksum that tells frozen weights from others.

    Args:
        tensors: The weights.

    Returns:
        CRC-32 of their bytes, 8 hexadecimal digits; None if there are no weights.
    """
    value: int | None = None
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        value = zlib.crc32(flat.numpy().data, value or 0)
    return None if value is None else f"{value:08x}"


class StepSnapshot:
    """What a forward pass changes beside gradients: buffers and random states, as they were.

    Args:
        buffers: The buffers, such as running statistics of batch norms, by name.
    """

    def __init__(self, buffers: Mapping[str, Tensor]) -> None:
        self._buffers = list(buffers.values())
        self._copies = [v.clone() for v in self._buffers]
        self._random = RandomState.capture()

    def take(self) -> None:
        """Remember the present values."""
        if self._buffers:
            torch._foreach_copy_(self._copies, self._buffers)
        self._random = RandomState.capture()

    def restore(self, *, random_state: bool = False) -> None:
        """Put the remembered values back.

        Args:
            random_state: Put the random states back, too.
        """
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)
        if random_state:
            self._random.restore()


# Random numbers -----------------------------------------------------------------------------


class RandomState(NamedTuple):
    """States of the random number generators of torch, NumPy, Python and this process's GPU.

    Attributes:
        torch: State of torch's generator on the CPU.
        numpy: State of NumPy's global generator.
        python: State of Python's global generator.
        cuda: State of torch's generator on the current GPU; None without one in use.
    """

    torch: Tensor
    numpy: Any
    python: Any
    cuda: Tensor | None

    @classmethod
    def capture(cls) -> RandomState:
        """The present states."""
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        return cls(
            torch.get_rng_state(),
            np.random.get_state(legacy=True),
            random.getstate(),
            torch.cuda.get_rng_state() if on_gpu else None,
        )

    def restore(self) -> None:
        """Set the generators to these states."""
        torch.set_rng_state(self.torch)
        np.random.set_state(self.numpy)
        random.setstate(self.python)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)

    def to_dict(self) -> dict[str, Any]:
        """The states as tensors and plain values, for a checkpoint."""
        name, keys, *rest = self.numpy
        version, words, normal = self.python
        return {
            "torch": self.torch,
            "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
            "python": [version, torch.tensor(words), normal],
            "cuda": self.cuda,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RandomState:
        """The inverse of ``to_dict``.

        Args:
            values: What ``to_dict`` returned.
        """
        name, keys, *rest = values["numpy"]
        version, words, normal = values["python"]
        return cls(
            values["torch"],
            (name, keys.numpy().astype(np.uint32), *rest),
            (version, tuple(words.tolist()), normal),
            values["cuda"],
        )


def seed_generators(seed: int, rank: int) -> None:
    """Seed torch, NumPy and Python for one rank.

    Args:
        seed: Seed of the run.
        rank: Number of this process; each draws other numbers.
    """
    words = np.random.SeedSequence((seed, rank)).generate_state(3).tolist()
    torch.manual_seed(words[0])
    np.random.seed(words[1])
    random.seed(words[2])


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Restore the random states of before when the block ends."""
    state = RandomState.capture()
    try:
        yield
    finally:
        state.restore()
