"""Pictures of a model as it learns: what was asked, what was found, what was missed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from ..build import ModelConfig
from ..nn.detector import Detector
from .data.sample import PhraseQuery, TrainingSample
from .held_out import Answers, ask
from .task import Picture

HIT, MISS, EXTRA = (60, 220, 90), (255, 160, 0), (255, 40, 60)
SIDE, LINE = 252, 15


@torch.no_grad()
def contact_sheet(
    net: Detector, config: ModelConfig, samples: Sequence[TrainingSample], columns: int = 6
) -> Picture:
    """One true and one false phrase of each sample, (H, W, 3) uint8.

    Green: found and there. Orange: there and not found. Red: found and not there. Under each
    picture the phrase, with a cross if it is absent, the presence and the best score.
    """
    cells = []
    for number, sample in enumerate(samples):
        there = [q for q in sample.queries if q.objects]
        absent = [q for q in sample.queries if not q.objects]
        queries = [pool[number % len(pool)] for pool in (there, absent) if pool]
        if not queries:
            continue
        answers = ask(net, config, sample, queries)
        for row, query in enumerate(queries):
            cells.append(_cell(net, config, sample, query, answers, row))
    if not cells:
        return np.zeros((SIDE + LINE, SIDE, 3), np.uint8)
    cells += [np.zeros_like(cells[0])] * (-len(cells) % columns)
    rows = [np.concatenate(cells[i : i + columns], 1) for i in range(0, len(cells), columns)]
    return np.concatenate(rows)


def _cell(
    net: Detector,
    config: ModelConfig,
    sample: TrainingSample,
    query: PhraseQuery,
    answers: Answers,
    row: int,
) -> Picture:
    masks, _ = answers.masks(net, row)
    found = _drawn(masks, 0.0)
    there = _drawn(sample.masks_at(4 * config.grid, query.objects), 0.5)
    picture = Image.fromarray(sample.image).resize((SIDE, SIDE))
    pixels = np.asarray(picture, np.float32) * 0.55
    for area, colour in ((found & there, HIT), (there & ~found, MISS), (found & ~there, EXTRA)):
        pixels[area] = pixels[area] * 0.5 + 0.5 * np.array(colour, np.float32)
    canvas = Image.new("RGB", (SIDE, SIDE + LINE))
    canvas.paste(Image.fromarray(pixels.astype(np.uint8)), (0, 0))
    sign = "" if query.objects else "x "
    presence, best = float(answers.answer.presence[row].sigmoid()), float(answers.scores[row].max())
    text = f"{sign}{query.phrase}  {presence:.2f} {best:.2f}"
    ImageDraw.Draw(canvas).text((2, SIDE + 1), text, fill=(255, 255, 255))
    return np.asarray(canvas)


def _drawn(masks: torch.Tensor, level: float) -> npt.NDArray[np.bool_]:
    """Where any of (N, cells, cells) is above a level, (SIDE, SIDE) bool."""
    if not len(masks):
        return np.zeros((SIDE, SIDE), bool)
    large = F.interpolate(masks[None], (SIDE, SIDE), mode="bilinear")[0]
    return np.asarray(large.amax(0) > level)
