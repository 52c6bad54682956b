"""Pictures of a model as it learns: what was asked, what was found, what was missed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from ..nn.detector import Detector
from ..nn.tokenizer import tokenize
from .collate import Collator
from .data.sample import PhraseQuery, TrainingSample
from .task import Picture

HIT, MISS, EXTRA = (60, 220, 90), (255, 160, 0), (255, 40, 60)
SIDE, LINE = 252, 15


@torch.no_grad()
def contact_sheet(
    net: Detector, samples: Sequence[TrainingSample], collator: Collator, columns: int = 6
) -> Picture:
    """One true and one false phrase of each sample, (H, W, 3) uint8.

    Green: found and there. Orange: there and not found. Red: found and not there. Under each
    picture the phrase, with a cross if it is absent, the presence and the best score.
    """
    cells = []
    for number, sample in enumerate(samples):
        there = [q for q in sample.queries if q.objects]
        absent = [q for q in sample.queries if not q.objects]
        for pool in (there, absent):
            if pool:
                cells.append(_cell(net, sample, pool[number % len(pool)], collator))
    if not cells:
        return np.zeros((SIDE, SIDE, 3), np.uint8)
    cells += [np.zeros_like(cells[0])] * (-len(cells) % columns)
    rows = [np.concatenate(cells[i : i + columns], 1) for i in range(0, len(cells), columns)]
    return np.concatenate(rows)


def _cell(net: Detector, sample: TrainingSample, query: PhraseQuery, collator: Collator) -> Picture:
    c = collator.config
    image = net.read_image(sample.pixels(c.resolution, c.mean, c.std))
    tokens = tokenize([query.phrase], c.context)
    prompt, mask = net.read_prompt(image, net.read_text(tokens))
    answer = net.answer(image, prompt, mask)
    presence = float(answer.presence.sigmoid())
    scores = answer.logits[0].float().sigmoid() * presence
    kept = (scores > 0.5).nonzero()[:, 0]
    found = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    if len(kept):
        found = _grow(net.masks_of(image, answer, 0, kept).float()).amax(0) > 0
    there = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    if query.objects:
        there = _grow(sample.masks_at(4 * c.grid, query.objects)).amax(0) > 0.5
    picture = Image.fromarray(sample.image).resize((SIDE, SIDE))
    pixels = np.asarray(picture, np.float32) * 0.55
    for area, colour in ((found & there, HIT), (there & ~found, MISS), (found & ~there, EXTRA)):
        pixels[area.numpy()] = pixels[area.numpy()] * 0.5 + 0.5 * np.array(colour, np.float32)
    canvas = Image.new("RGB", (SIDE, SIDE + LINE))
    canvas.paste(Image.fromarray(pixels.astype(np.uint8)), (0, 0))
    sign = "" if query.objects else "x "
    text = f"{sign}{query.phrase}  {presence:.2f} {float(scores.max()):.2f}"
    ImageDraw.Draw(canvas).text((2, SIDE + 1), text, fill=(255, 255, 255))
    return np.asarray(canvas)


def _grow(masks: torch.Tensor) -> torch.Tensor:
    return F.interpolate(masks[None], (SIDE, SIDE), mode="bilinear")[0]
