"""Pictures by which a model is quantized and its agreement is measured."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from ..bpe import clip_tokenizer
from ..concepts import Concepts, read_classes, unique_phrases
from ..errors import ArgumentError, ImageError, shorten
from ..io.image_files import find_images
from ..io.samples import read_rgb_array
from ..predictor import ImageModel
from ..runtime.pixels import normalize
from ..types import Array
from ..values import is_whole
from .graphs import Graph, choose_queries, join_prompt, run_graph

PHRASES = ("person", "animal", "vehicle", "plant", "food", "furniture", "tool", "sign")
"""Phrases of the calibration where the user gives none; each picture is asked for one."""

# fmt: off
FURTHER = (
    "dog", "red car", "a man with a hat", "chair", "small white bird", "cup", "traffic light",
    "house", "green leaf", "shoe", "bicycle", "yellow school bus", "bottle", "computer screen",
    "tree", "a slice of pizza", "book", "cat", "wooden table", "ball", "street sign", "fish",
    "blue umbrella", "flower", "woman in a black dress", "fork", "airplane", "cloud", "old clock",
    "horse", "bag", "window", "ripe banana", "hand", "boat on the water", "lamp", "insect",
    "child", "key", "musical instrument", "mountain", "letter a", "striped shirt", "machine",
    "star", "cake", "dark blue truck", "door",
)
# fmt: on
"""Further phrases by which the heads are calibrated: the ranges of their numbers depend on the
phrase, and the user's phrases are often few."""

HEAD_FEEDS = 48
"""Phrases, at least, by which the heads are calibrated, over all pictures together."""

BEST = 40
"""Queries of a picture whose masks are compared."""

MEASURED = 8
"""Pictures, at most, by which agreement is measured."""

MASK_FEEDS = 4
"""Pictures, at most, for the graphs that need the large maps of the mask head."""

CHAIN = ("image", "text", "heads", "mask_image", "masks")
"""The graphs that answer a phrase, in the order in which they run."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """A picture, its phrase, and what PyTorch in float32 computes of them.

    Attributes:
        inputs: Inputs by graph and name.
        further: Inputs of the graph "heads" with further phrases.
        words: (1, L, C) text features of the phrase.
        valid: (1, L) bool, which tokens the phrase has.
        queries: (K,) the best queries.
        masks: (K, h, w) bool, their masks.
        presence: Probability that the picture shows the phrase.
        score: Probability of the best query.
    """

    inputs: dict[str, dict[str, Array]]
    further: list[dict[str, Array]]
    words: Array
    valid: Array
    queries: Array
    masks: Array
    presence: float
    score: float


@dataclass(frozen=True)
class Calibration:
    """What a model is quantized and measured by.

    Attributes:
        samples: Samples by which it is quantized.
        measured: Samples by which its agreement is measured.
        held_out: Whether none of ``measured`` is in ``samples``.
    """

    samples: list[Sample]
    measured: list[Sample]
    held_out: bool

    def feeds(self, graph: str) -> list[dict[str, Array]]:
        """Inputs of a graph, one for each picture, and further ones for the heads.

        Args:
            graph: Name of the graph.
        """
        feeds = [s.inputs[graph] for s in self.samples if graph in s.inputs]
        if graph == "heads":
            feeds += [feed for s in self.samples for feed in s.further]
        return feeds


class Pictures(NamedTuple):
    """Pictures of a folder, (H, W, 3) uint8."""

    calibrating: list[Array]
    """Those to quantize by."""
    measuring: list[Array]
    """Those to measure by."""
    held_out: bool
    """Whether the latter are others."""


def read_pictures(folder: str | os.PathLike[str], count: int, out: Path) -> Pictures:
    """Read pictures of a folder, evenly spaced in the order of their paths.

    Args:
        folder: The folder; folders below it are read too.
        count: Pictures to calibrate by, at most.
        out: Folder of the export, whose own files are left out.

    Raises:
        ArgumentError: ``count`` is below 1, or ``folder`` is no folder.
        ImageError: There is no picture in the folder, or none can be read.
    """
    if not is_whole(count, 1):
        raise ArgumentError(f"calibrate_count is at least 1 picture; got {shorten(count)}")
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise ArgumentError(
            f"calibrate is a folder with pictures like those that the model will see; {place} is "
            f"{'a file' if place.exists() else 'not there'}"
        )
    paths = [image.path for image in find_images([place], out)]
    chosen = _spaced(paths, count)
    rest = [path for path in paths if path not in set(chosen)]
    pictures, errors = _read(chosen)
    if not pictures:
        raise ImageError(
            f"none of {len(chosen)} pictures of {place} can be read ({errors[0]}); give a folder "
            "with pictures like those that the model will see"
        )
    others, more = _read(_spaced(rest, MEASURED))
    if errors or more:
        logger.warning("left out of the calibration: %s", "; ".join((errors + more)[:3]))
    return Pictures(pictures, others or pictures[:MEASURED], bool(others))


def _spaced(paths: list[Path], count: int) -> list[Path]:
    """``count`` paths, evenly spaced, or all where there are no more."""
    if len(paths) <= count:
        return paths
    return [paths[i * len(paths) // count] for i in range(count)]


def _read(paths: list[Path]) -> tuple[list[Array], list[str]]:
    pictures, errors = [], []
    for path in paths:
        try:
            pictures.append(read_rgb_array(path))
        except ImageError as error:
            errors.append(str(error))
    return pictures, errors


def calibrate(
    model: ImageModel, graphs: list[Graph], pictures: Pictures, concepts: Concepts | None
) -> Calibration:
    """Run the graphs in PyTorch on pictures.

    Args:
        model: The model.
        graphs: Its graphs.
        pictures: From ``read_pictures``.
        concepts: As ``ImageModel.segment`` takes them; None: ``PHRASES``.

    Raises:
        PromptError: A phrase is wrong.
    """
    phrases = list(unique_phrases(read_classes(concepts) or {}).values()) or list(PHRASES)
    by_name = {graph.name: graph for graph in graphs if graph.name in CHAIN}

    def make(pictures: list[Array], more: int) -> list[Sample]:
        return [
            _sample(
                model,
                by_name,
                picture,
                phrases[i % len(phrases)],
                [FURTHER[k % len(FURTHER)] for k in range(i * more, (i + 1) * more)],
                with_masks=i < MASK_FEEDS,
            )
            for i, picture in enumerate(pictures)
        ]

    more = min(len(FURTHER), -(-HEAD_FEEDS // len(pictures.calibrating)) - 1)
    samples = make(pictures.calibrating, max(0, more))
    measured = make(pictures.measuring, 0) if pictures.held_out else samples[:MEASURED]
    return Calibration(samples, measured, pictures.held_out)


@torch.no_grad()
def _sample(
    model: ImageModel,
    graphs: dict[str, Graph],
    picture: Array,
    phrase: str,
    further: Sequence[str],
    *,
    with_masks: bool,
) -> Sample:
    c = model.config
    ids = torch.from_numpy(clip_tokenizer()([phrase], c.context))
    pixels = normalize(picture, c.resolution, c.mean, c.std)
    known = {"pixels": torch.from_numpy(pixels), "ids": ids}
    inputs: dict[str, dict[str, Array]] = {}
    best = torch.empty(0)
    for name in CHAIN:
        graph = graphs[name]
        given = known
        if name == "heads":
            join_prompt(known)
        elif name == "masks":
            best = known["logits"][0].topk(min(BEST, known["logits"].shape[1])).indices
            given = choose_queries(known, best)
        feed = {key: given[key] for key in graph.inputs}
        known |= run_graph(graph, feed)
        if with_masks or name not in ("mask_image", "masks"):
            inputs[name] = {key: value.numpy() for key, value in feed.items()}
    return Sample(
        inputs,
        [_feed_heads(graphs, known, other, c.context) for other in further],
        known["words"].numpy(),
        (ids != 0).numpy(),
        best.numpy(),
        (known["masks"][0] > 0).numpy(),
        float(known["presence"].sigmoid()[0]),
        float(known["logits"][0].max().sigmoid()),
    )


def _feed_heads(
    graphs: dict[str, Graph], known: dict[str, torch.Tensor], phrase: str, context: int
) -> dict[str, Array]:
    """Inputs of the heads for another phrase about a picture."""
    other = {**known, "ids": torch.from_numpy(clip_tokenizer()([phrase], context))}
    text = graphs["text"]
    other |= run_graph(text, {key: other[key] for key in text.inputs})
    join_prompt(other)
    return {key: other[key].numpy() for key in graphs["heads"].inputs}
