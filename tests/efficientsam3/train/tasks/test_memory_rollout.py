"""The rollout equals the tracker in use, and gradients reach all of its parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from efficientsam3.config import MemoryConfig
from efficientsam3.predictor import ImageModel
from efficientsam3.train.tasks.memory_rollout import ClipFeatures, Rollout
from efficientsam3.types import POSITIVE
from efficientsam3.video.memory_tracker import MemoryTracker
from efficientsam3.video.settings import MemorySettings

from ..clips import Moving, tiny_tracker

PERCEIVED = MemoryConfig(depth=2, latents=5, cells=4)


@pytest.mark.parametrize("memory", [MemoryConfig(), PERCEIVED], ids=["full", "perceiver"])
@pytest.mark.parametrize("prompt", ["mask", "click"])
def test_the_rollout_equals_the_tracker_in_use(memory: MemoryConfig, prompt: str) -> None:
    config, net = tiny_tracker(memory=memory)
    net.eval().requires_grad_(False)
    clip = Moving().cut(0, 9, np.random.default_rng(0))
    frames = ClipFeatures.read(net, clip.pixels(config.resolution)[None])
    rollout = Rollout(net, frames, torch.zeros(2, dtype=torch.long))
    model = ImageModel("tiny", config, lambda: net, device="cpu", dtype="float32")
    tracker = MemoryTracker(
        model, MemorySettings(memory_selection=False, memory_mask_size="memory")
    )
    masks = torch.stack([clip.mask_at(0, n, 32) for n in range(2)])
    seen = [tracker.read(image) for image in clip.images]
    if prompt == "mask":
        rollout.prompt_masks(0, masks, forced=False)
        tracker.add_masks(0, seen[0], [0, 1], masks)
    else:
        xy = torch.tensor([[[0.15, 0.25]], [[0.8, 0.75]]])
        labels = torch.full((2, 1), POSITIVE)
        output = rollout.prompt_points(0, xy, labels, None, multimask=True)
        rollout.remember(0, output, prompted=True)
        for n in range(2):
            out = tracker.add_points(0, seen[0], n, xy[n], labels[n])
            torch.testing.assert_close(
                out.presence[0], output.masks.presence[n], rtol=1e-3, atol=1e-3
            )
    for t in range(1, len(clip)):  # more frames than one frame reads
        output = rollout.propagate(t)
        found = tracker.propagate(t, seen[t])
        present = output.masks.presence > 0
        torch.testing.assert_close(output.masks.presence, found.presence, rtol=2e-3, atol=2e-3)
        shown = torch.where(present[:, None, None], output.logits, -1024.0)
        torch.testing.assert_close(shown, found.logits, rtol=2e-3, atol=5e-3)
        if t == 4:  # corrected
            xy, labels = torch.tensor([[[0.5, 0.5]]] * 2), torch.full((2, 1), POSITIVE)
            output = rollout.prompt_points(t, xy, labels, output.logits, multimask=True)
            rollout.remember(t, output, prompted=True)
            for n in range(2):
                tracker.add_points(t, seen[t], n, xy[n], labels[n], found.logits[n])
            continue
        rollout.remember(t, output, prompted=False)
        tracker.remember(t, seen[t], found)


def test_gradients_reach_all_parts_of_the_memory() -> None:
    config, net = tiny_tracker(memory=PERCEIVED)
    net.train()
    clip = Moving().cut(0, 3, np.random.default_rng(0))
    rollout = Rollout(
        net, ClipFeatures.read(net, clip.pixels(config.resolution)[None]), torch.zeros(1).long()
    )
    mask = clip.mask_at(0, 0, 32)[None]
    rollout.prompt_masks(0, mask, forced=True)
    output = rollout.propagate(1)
    output.masks.presence.data.fill_(1.0)
    rollout.remember(1, output, prompted=False)
    output = rollout.propagate(2)
    (output.logits.square().mean() + output.masks.presence.sum()).backward()
    memory = net.part("memory")
    for name, weight in (
        ("encoder", memory.encoder.out_proj.weight),
        ("latents", memory.perceiver.latents),
        ("placed latents", memory.perceiver.latents_2d),
        ("when", memory.frame_positions),
        ("pointer", memory.pointer.layers[0].weight),
        ("mask prompt", memory.mask_downsample.weight),
        ("attention", memory.attention.layers[1].cross_attn_image.v_proj.weight),
        ("pyramid", net.part("interactive_neck").levels[2].mix.weight),
    ):
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_objects_of_different_clips_are_independent() -> None:
    config, net = tiny_tracker()
    net.eval().requires_grad_(False)
    clips = [Moving().cut(n, 3, np.random.default_rng(0)) for n in range(2)]
    pixels = torch.stack([clip.pixels(config.resolution) for clip in clips])
    masks = torch.stack([clip.mask_at(0, n, 32) for clip in clips for n in range(2)])

    def run(pixels: torch.Tensor, rows: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        rollout = Rollout(net, ClipFeatures.read(net, pixels), rows)
        rollout.prompt_masks(0, masks, forced=False)
        output = rollout.propagate(1)
        rollout.remember(1, output, prompted=False)
        return rollout.propagate(2).logits

    together = run(pixels, torch.tensor([0, 0, 1, 1]), masks)
    alone = run(pixels[1:], torch.tensor([0, 0]), masks[2:])
    torch.testing.assert_close(together[2:], alone, rtol=1e-3, atol=1e-3)


def test_true_masks_are_remembered_instead_of_predicted_ones() -> None:
    config, net = tiny_tracker()
    net.eval().requires_grad_(False)
    clip = Moving().cut(0, 2, np.random.default_rng(0))
    frames = ClipFeatures.read(net, clip.pixels(config.resolution)[None])
    truth = clip.mask_at(0, 0, 32)[None]
    predicted, given = (Rollout(net, frames, torch.zeros(1).long()) for _ in range(2))
    given.prompt_masks(0, truth, forced=True)
    xy, labels = torch.tensor([[[0.9, 0.9]]]), torch.tensor([[POSITIVE]])
    predicted.remember(
        0, predicted.prompt_points(0, xy, labels, None, multimask=True), prompted=True, truth=truth
    )
    ours, theirs = (r.bank.conditioning[0].tokens for r in (predicted, given))
    assert ours is not None and theirs is not None
    torch.testing.assert_close(ours, theirs)
