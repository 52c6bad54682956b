"""Eight bits: which layers are quantized is decided by what they cost in agreement.

A graph is quantized whole. Where that costs too much, its layers are tried in groups, and those
that cost most are kept in half precision.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..runtime.manifest import Manifest
from ..runtime.sessions import Sessions, open_sessions
from ..types import Array
from .agreement import mask_overlaps
from .calibration import Calibration, Sample

QUANTIZED = ("image", "heads", "mask_image", "masks")
"""The graphs that are quantized. The others are short, and stay in half precision."""

LOSS = 0.03
"""What all graphs together may lose of mask IoU, and by how much presence may differ."""

GROUPS = 6
"""Groups of neighboring layers that are tried one by one."""

FEW = 3
"""Pictures by which groups are compared with each other."""


class Quantizer(Protocol):
    """How files of a backend are quantized."""

    def layers(self, file: Path) -> list[str]:
        """Names of the layers that can be quantized, in the order in which they run.

        Args:
            file: The file of a graph.
        """

    def quantize(
        self,
        file: Path,
        target: Path,
        feeds: list[dict[str, Array]],
        kept: list[str],
        *,
        roughly: bool = False,
    ) -> None:
        """Quantize a graph.

        Args:
            file: Its file, float32.
            target: The file to write.
            feeds: Inputs by which ranges are measured.
            kept: Names of layers that are not quantized.
            roughly: Leave out steps that take long, to compare layers with each other.
        """

    def halve(self, file: Path) -> None:
        """Store what is not quantized in half precision.

        Args:
            file: The file, which is replaced.
        """


@dataclass(frozen=True)
class Agreement:
    """Agreement with PyTorch in float32 on pictures.

    Attributes:
        overlap: Mean IoU of the masks of each picture's best queries.
        presence: Mean difference of the probability that a concept is in the picture.
        score: Mean difference of the probability of each picture's best query.
    """

    overlap: float
    presence: float
    score: float = 0.0

    def within(self, start: Agreement, loss: float) -> bool:
        """Whether no more than ``loss`` is lost of any of them.

        Args:
            start: The agreement before quantization.
            loss: What may be lost.
        """
        differences = self.presence - start.presence, self.score - start.score
        return start.overlap - self.overlap <= loss and max(differences) <= loss


def measure(sessions: Sessions, samples: list[Sample], *, matched: bool) -> Agreement:
    """Answer the phrases of pictures, and compare with PyTorch's answers.

    Args:
        sessions: The graphs.
        samples: The pictures.
        matched: Whether queries have no fixed order, so that each mask is compared with the one
            that is most like it.

    Returns:
        The agreement.
    """
    overlaps, differences, scores = [], [], []
    for sample in samples:
        known = sessions.run("image", **sample.inputs["image"])
        known["prompt"] = np.concatenate([sample.words, known["bare_prompt"]], 1)
        known["valid"] = np.concatenate([sample.valid, np.ones((1, 1), bool)], 1)
        known |= sessions.run("heads", **known)
        # The best query answers the phrase; its number may be another.
        scores.append(abs(_probability(known["logits"][0].max()) - sample.score))
        known |= sessions.run("mask_image", **known)
        chosen = np.arange(known["queries"].shape[1]) if matched else sample.queries
        known |= {name: known[name][:1, chosen] for name in ("queries", "boxes")}
        masks = sessions.run("masks", **known)["masks"][0] > 0
        overlaps.append(mask_overlaps(masks, sample.masks, matched=matched).mean())
        differences.append(abs(_probability(known["presence"][0]) - sample.presence))
    return Agreement(*(float(np.mean(values)) for values in (overlaps, differences, scores)))


def _probability(logit: Any) -> float:
    return float(1 / (1 + np.exp(-float(logit))))


def quantize_graphs(
    folder: Path,
    manifest: Manifest,
    calibration: Calibration,
    quantizer: Quantizer,
    *,
    matched: bool,
    loss: float = LOSS,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Quantize the graphs of an exported folder, whose files are float32, in place.

    Args:
        folder: The folder.
        manifest: Its manifest.
        calibration: What to quantize and measure by.
        quantizer: How files of the backend are quantized.
        matched: As in ``measure``.
        loss: What all graphs together may lose, of mask IoU, presence and scores; from 1 on, all
            layers are quantized.
        report: Called with what is being done.

    Returns:
        "mask IoU", "presence difference" and "score difference", measured; how many pictures were
        used, and whether others were measured; "kept in half precision", names of layers by graph.
    """
    sessions = open_sessions(folder, manifest)
    files = {name: manifest.graphs[name]["file"] for name in QUANTIZED if name in manifest.graphs}
    kept: dict[str, list[str]] = {}
    found = start = measure(sessions, calibration.measured, matched=matched)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        for number, (name, file) in enumerate(files.items(), 1):
            # A graph may lose what those before it have not lost; with 1, none may lose too much.
            allowed = loss * number / len(files) if loss < 1 else loss
            search = _Search(
                sessions, calibration, quantizer, Path(temporary), name, matched, report
            )
            best, kept[name], found = search.run(folder / file, start, allowed, found)
            if best != folder / file:
                for part in best.parent.glob(f"{best.stem}.*"):
                    (folder / Path(file).with_suffix(part.suffix)).write_bytes(part.read_bytes())
        sessions.close()
        for entry, file in ((manifest.graphs[name], file) for name, file in files.items()):
            entry["file"] = file
            quantizer.halve(folder / file)
    return {
        "mask IoU": round(found.overlap, 4),
        "presence difference": round(found.presence, 4),
        "score difference": round(found.score, 4),
        "calibrated by": len(calibration.samples),
        "measured on": len(calibration.measured),
        "measured on other pictures": calibration.held_out,
        "kept in half precision": {name: layers for name, layers in kept.items() if layers},
    }


@dataclass
class _Search:
    """Finds the layers of one graph that can be quantized."""

    sessions: Sessions
    calibration: Calibration
    quantizer: Quantizer
    temporary: Path
    name: str
    matched: bool
    report: Callable[[str], None]
    tries: int = 0

    def run(
        self, file: Path, start: Agreement, allowed: float, before: Agreement
    ) -> tuple[Path, list[str], Agreement]:
        """Return the file, the layers that are not quantized, and the agreement with this file."""
        path, found = self._try(file, [])
        if found.within(start, allowed):
            return path, [], found
        layers = self.quantizer.layers(file)
        groups = [list(part) for part in np.array_split(layers, min(GROUPS, len(layers)))]
        alone = []
        for group in groups:
            others = [layer for layer in layers if layer not in group]
            tried = self._try(file, others, roughly=True)[1]
            alone.append(tried.overlap - tried.presence - tried.score)
        order = np.argsort(alone, kind="stable")  # the worst first
        count = 1
        while count < len(groups):
            kept = [str(layer) for i in sorted(order[:count]) for layer in groups[i]]
            path, found = self._try(file, kept)
            if found.within(start, allowed):
                return path, kept, found
            count *= 2
        self.sessions.replace(self.name, file)
        return file, layers, before

    def _try(self, file: Path, kept: list[str], *, roughly: bool = False) -> tuple[Path, Agreement]:
        self.tries += 1
        self.report(f"quantizing {self.name}, try {self.tries}")
        path = self.temporary / f"{self.name}-{self.tries}{file.suffix}"
        feeds, measured = self.calibration.feeds(self.name), self.calibration.measured
        if roughly:
            feeds, measured = feeds[:FEW], measured[:FEW]
        self.quantizer.quantize(file, path, feeds, kept, roughly=roughly)
        self.sessions.replace(self.name, path)
        return path, measure(self.sessions, measured, matched=self.matched)
