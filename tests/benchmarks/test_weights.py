"""The Perceiver memory of the README's table, which fits the model that the package has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import efficientsam3 as es3
from efficientsam3.evaluate import read_clip_annotations
from efficientsam3.io import rle
from efficientsam3.train.merge import merge_files
from efficientsam3.variants import EMBEDDED, find_variant

pytest.importorskip("av")
ROOT = Path(__file__).parents[2]
SCENES = ROOT / "demo" / "scenes"


@pytest.mark.slow
def test_it_follows_what_is_given(tmp_path: Path) -> None:
    package = find_variant(EMBEDDED).weights.location
    partial = ROOT / "benchmarks" / "weights" / "stickers-perceiver.safetensors"
    config = merge_files(package, [partial], tmp_path / "model")
    assert (config.memory.latents, config.memory.cells) == (16, 7)
    model = es3.load(str(tmp_path / "model"), device="cpu")

    truth = read_clip_annotations(SCENES / "veval.json")
    (clip,) = [c for c in truth.queries.values() if c.phrase == "pig face"]
    near = clip.tracks[1]  # the smaller pig, in front of all others until frame 8
    tracker = es3.InteractiveTracker(model, SCENES / f"{clip.clip.name}.mp4")
    tracker.add_mask(0, 7, rle.decode(near.masks[0]).astype(bool))
    shared = []
    for frame in tracker.propagate(stop=8):
        true = rle.decode(near.masks[frame.index]).astype(bool)
        found = frame.instances
        mask = found.masks[found.track_ids == 7].any(0) if len(found) else np.zeros_like(true)
        shared.append((mask & true).sum() / (mask | true).sum())
    assert len(shared) == 8
    assert np.mean(shared[1:]) > 0.7, shared  # of a mask that stands still: 0.50
