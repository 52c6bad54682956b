"""The inference form of each part gives what the learned form gives, with less arithmetic."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficientsam3.build import build
from efficientsam3.config import ModelConfig, tiny_config
from efficientsam3.nn.detector import Detector, fold
from efficientsam3.nn.fusion import FusionLayer
from efficientsam3.nn.geometry import Exemplars
from efficientsam3.nn.masks import FoldedMaskHead, MaskHead
from efficientsam3.nn.neck import FoldedLevel, Level, Neck, after_nearest, double, enlarge
from efficientsam3.nn.student import StudentTrunk
from efficientsam3.nn.tokenizer import tokenize

from ..conftest import scale_weights


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Equal to rounding, at the scale of the values."""
    scale = max(1.0, theirs.abs().max().item())
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=tolerance * scale)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scaled(config: ModelConfig) -> Detector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build(config).eval().requires_grad_(False)
    scale_weights(net)
    return net


EXEMPLARS = Exemplars(
    points=torch.tensor([[[0.2, 0.3], [1.0, 0.0]]]),
    point_labels=torch.tensor([[1, 0]]),
    point_valid=torch.tensor([[True, True]]),
    boxes=torch.tensor([[[0.5, 0.5, 0.3, 0.4]]]),
    box_labels=torch.tensor([[1]]),
    box_valid=torch.tensor([[True]]),
)


@pytest.mark.parametrize("exemplars", [None, EXEMPLARS], ids=["text", "exemplars"])
@pytest.mark.parametrize("grid", [8, 12])
@torch.inference_mode()
def test_a_folded_model_answers_as_the_learned_one(grid: int, exemplars: Exemplars | None) -> None:
    learned = scaled(tiny_config(grid=grid, resolution=14 * grid))
    folded = fold(learned)
    pixels = normal(1, 3, 14 * grid, 14 * grid)
    tokens = tokenize(["red apple", "a person in a black coat"][: 1 if exemplars else 2], 16)
    said = []
    for net in (learned, folded):
        image = net.read_image(pixels)
        prompt, mask = net.read_prompt(image, net.read_text(tokens), exemplars)
        answer = net.answer(image, prompt, mask)
        last = len(tokens) - 1
        masks = net.masks_of(image, answer, last, torch.arange(12))
        objects = net.part("interactive")(
            net.interactive_features(image),
            torch.tensor([[[0.3, 0.4]]]),
            torch.tensor([[1]]),
            multimask=True,
        )
        said.append(
            {
                "tokens": image.tokens,
                "memory": answer.memory,
                "logits": answer.logits,
                "presence": answer.presence,
                "boxes": answer.boxes,
                "masks": masks,
                "object logits": objects.logits,
                "object quality": objects.quality,
                "object presence": objects.presence,
            }
        )
    for name, value in said[0].items():
        assert value.numel() < 3 or value.std() > 1e-3, f"{name} has nothing to tell apart"
        close(said[1][name], value)


@pytest.mark.slow
@torch.inference_mode()
def test_folding_leaves_the_learned_model_as_it_is() -> None:
    learned = scaled(tiny_config())
    before = {k: v.clone() for k, v in learned.state_dict().items()}
    for dtype, pooled in ((torch.float32, False), (torch.bfloat16, True)):
        folded = fold(learned, dtype, pooled=pooled)
        folded.read_image(normal(1, 3, 112, 112))
    after = learned.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in after.items())
    assert not learned.part("fusion").pooled


@torch.inference_mode()
def test_features_of_several_images_are_those_of_each() -> None:
    """One prompt an image, in one batch, as training and ``ground`` use it."""
    net = fold(scaled(tiny_config()))
    pixels = normal(3, 3, 112, 112)
    text = net.read_text(tokenize(["bus", "dog", "a tall tree"], 16))
    image = net.read_image(pixels)
    prompt, mask = net.read_prompt(image, text)
    answer = net.answer(image, prompt, mask)
    for i in range(3):
        alone = net.read_image(pixels[i : i + 1])
        words = tuple(t[i : i + 1] for t in text)
        said = net.answer(alone, *net.read_prompt(alone, words))
        close(answer.logits[i], said.logits[0])
        close(answer.boxes[i], said.boxes[0])
        queries = torch.arange(12)
        masks = net.masks_of(image, answer, i, queries)
        close(masks, net.masks_of(alone, said, 0, queries), 1e-4)


# The neck ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [4, 2, 1])
@pytest.mark.parametrize(("cells", "grid"), [(9, 9), (8, 8), (5, 9), (4, 7), (1, 3), (1, 1)])
@pytest.mark.parametrize("after", [False, True], ids=["alone", "convolution after it"])
@torch.inference_mode()
def test_folded_pyramid_levels_also_at_borders_and_odd_sizes(
    scale: int, cells: int, grid: int, after: bool
) -> None:
    level = Level(scale, 16, 12)
    scale_weights(level)
    for parameter in level.parameters():
        if parameter.ndim == 1:
            parameter.add_(1)  # biases meet the zero padding at the border
    last = nn.Conv2d(12, 5, 1) if after else None
    x = normal(2, 16, cells, cells)
    expected = level(enlarge(x, grid))
    if last is not None:
        expected = last(expected)
    assert expected.shape[-1] == scale * grid
    found = FoldedLevel(level, grid, torch.float32, last)(x)
    assert found.shape == expected.shape
    close(found, expected)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 7)])
@torch.inference_mode()
def test_a_convolution_after_doubling_is_four_small_ones(size: tuple[int, int]) -> None:
    weight, bias = normal(6, 5, 3, 3), normal(6)
    x = normal(2, 5, *size).contiguous(memory_format=torch.channels_last)
    base = normal(1, 6, 2 * size[0], 2 * size[1])
    large = F.interpolate(x, scale_factor=2, mode="nearest")
    expected = F.conv2d(large, weight, bias, padding=1) + base
    close(double(x, after_nearest(weight), bias, base), expected)


@pytest.mark.parametrize("grid", [1, 4, 7])
@torch.inference_mode()
def test_folded_mask_head(grid: int) -> None:
    neck, head = Neck((4, 2, 1), grid, 24, 16), MaskHead(16, 2)
    scale_weights(neck)
    scale_weights(head)
    x = normal(1, 24, grid, grid)
    args = normal(1, grid * grid, 16), (grid, grid), normal(1, 5, 16), torch.ones(1, 5) > 0
    queries = normal(1, 12, 16)
    expected = head(*args, queries, neck(x, (1, 0)))
    folded = FoldedMaskHead(head, neck, torch.float32)
    found = folded.read_masks(queries, folded.read_pixels(*args, folded.read_image(x)))
    assert found.shape == (1, 12, 4 * grid, 4 * grid)
    close(found, expected)


# Image encoders ------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["repvit-m0.9", "tinyvit-5m", "efficientvit-b0"])
@torch.inference_mode()
def test_folded_image_encoders(encoder: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = StudentTrunk(encoder, 32).eval()
    generator = torch.Generator().manual_seed(0)
    for name, buffer in trunk.named_buffers():
        noise = torch.rand(buffer.shape, generator=generator)
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * noise)
        elif name.endswith("running_var"):
            buffer.copy_(0.75 + 0.75 * noise)
    for name, parameter in trunk.named_parameters():
        if parameter.ndim == 1 or name.endswith("attention_biases"):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    x = normal(2, 3, 160, 160)
    expected = trunk(x)
    assert expected.shape == (2, 32, 5, 5)
    assert expected.std() > 1e-3
    trunk.fold_norms()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in trunk.modules()), (
        "a batch norm was left over"
    )
    close(trunk(x), expected)


# Fast mode -----------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(4, 6), (5, 3), (1, 1)], ids=str)
@torch.inference_mode()
def test_pooling_keys_is_exact_where_blocks_are_constant(grid: tuple[int, int]) -> None:
    """Four equal keys weigh as much as one does among one of each.

    At an odd border a block has fewer cells, and weighs as much as the others: the result is that
    of the grid whose blocks are complete.
    """
    layer = FusionLayer(16, 2, 32)
    scale_weights(layer)
    rows, columns = -(-grid[0] // 2), -(-grid[1] // 2)

    def blocks(channels: int, seed: int) -> Tensor:
        maps = normal(1, channels, rows, columns, seed=seed)
        return F.interpolate(maps, scale_factor=2, mode="nearest")

    def tokens(maps: Tensor) -> Tensor:
        return maps.flatten(2).transpose(1, 2)

    def crop(maps: Tensor) -> Tensor:
        return maps[:, :, : grid[0], : grid[1]]

    x, placed = blocks(16, 1), blocks(32, 2)
    exact = layer.attend_image(tokens(x), tokens(placed)[0], None)
    exact = crop(exact.transpose(1, 2).unflatten(2, (2 * rows, 2 * columns)))
    pooled = layer.attend_image(tokens(crop(x)), tokens(crop(placed))[0], grid)
    close(pooled, tokens(exact))


@torch.inference_mode()
def test_fast_mode_changes_little_and_nothing_but_the_fusion_encoder() -> None:
    learned = scaled(tiny_config())
    exact, fast = fold(learned), fold(learned, pooled=True)
    pixels = normal(1, 3, 112, 112)
    a, b = exact.read_image(pixels), fast.read_image(pixels)
    assert torch.equal(a.tokens, b.tokens)
    assert not torch.equal(a.seen, b.seen)
    words = exact.read_text(tokenize(["bus"], 16))
    memories = [
        net.answer(image, *net.read_prompt(image, words)).memory
        for net, image in ((exact, a), (fast, b))
    ]
    assert not torch.equal(*memories)
    agreement = F.cosine_similarity(memories[0], memories[1], dim=-1)
    assert agreement.mean() > 0.9


# Precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_answers_in_float32_and_nearly_the_same(dtype: torch.dtype) -> None:
    learned = scaled(tiny_config())
    pixels = normal(1, 3, 112, 112)
    text = tokenize(["bus"], 16)
    said = []
    for net in (fold(learned), fold(learned, dtype)):
        image = net.read_image(pixels)
        answer = net.answer(image, *net.read_prompt(image, net.read_text(text)))
        masks = net.masks_of(image, answer, 0, torch.arange(12))
        assert {t.dtype for t in (answer.logits, answer.boxes, masks)} == {torch.float32}
        said.append((image.tokens, answer.memory, answer.boxes, masks))
    for exact, rounded in zip(*said, strict=True):
        difference = (exact - rounded).square().mean().sqrt()
        assert difference < 0.1 * exact.square().mean().sqrt()
        assert difference > 0, "nothing was rounded"
