"""Forms of the mathematics that training uses give what the plain forms give."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from efficientsam3.build import build
from efficientsam3.config import tiny_config
from efficientsam3.nn.decoder import Decoder, DotProductScoring
from efficientsam3.nn.detector import Detector
from efficientsam3.nn.layers import dot_product_attention
from efficientsam3.nn.masks import MaskHead
from efficientsam3.nn.neck import after_nearest, double, double_learned


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# Attention ----------------------------------------------------------------------------------


def masks() -> list[Tensor | None]:
    keep = torch.rand(2, 1, 1, 7) > 0.4
    keep[..., 0] = True
    return [None, keep, torch.randn(2, 3, 5, 7)]


@pytest.mark.parametrize("which", [0, 1, 2], ids=["open", "kept", "added"])
def test_attention_is_torchs(which: int) -> None:
    mask = masks()[which]
    ours = [torch.randn(2, 3, n, 4).requires_grad_() for n in (5, 7, 7)]
    theirs = [t.detach().clone().requires_grad_() for t in ours]
    a = dot_product_attention(*ours, mask)
    b = F.scaled_dot_product_attention(*theirs, attn_mask=mask)
    torch.testing.assert_close(a, b)
    weight = torch.randn_like(a)
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_bias_of_attention_learns() -> None:
    q, k, v = (torch.randn(1, 1, n, 4) for n in (2, 3, 3))
    q.requires_grad_()
    bias = torch.zeros(1, 1, 2, 3, requires_grad=True)
    dot_product_attention(q, k, v, bias).square().sum().backward()
    assert bias.grad is not None
    assert float(bias.grad.abs().max()) > 0


def test_attention_in_use_is_the_fused_one(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: used.append(1) or plain(*a, **k)
    )
    q = torch.randn(1, 1, 2, 4)
    dot_product_attention(q, q, q)
    assert used == [1]
    dot_product_attention(q.requires_grad_(), q, q)
    assert used == [1]
    with torch.no_grad():
        dot_product_attention(q.detach(), q, q)
    assert used == [1, 1]


# Doubling -----------------------------------------------------------------------------------


def test_doubling_with_and_without_gradients() -> None:
    x, kernel = torch.randn(2, 6, 5, 4, requires_grad=True), torch.randn(8, 6, 3, 3)
    wanted = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), kernel, padding=1)
    learned = double_learned(x, kernel)
    torch.testing.assert_close(learned, wanted, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        inplace = double(x, after_nearest(kernel))
    torch.testing.assert_close(inplace, wanted.detach(), atol=1e-4, rtol=1e-4)
    weight = torch.randn_like(wanted)
    (ours,) = torch.autograd.grad((learned * weight).sum(), x)
    (theirs,) = torch.autograd.grad((wanted * weight).sum(), x)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


# Masks --------------------------------------------------------------------------------------


def test_masks_of_many_prompts_are_those_of_each() -> None:
    width, grid = 16, (5, 3)
    head = MaskHead(width, 2)
    images = torch.tensor([1, 0, 1, 1])
    memory, prompt = torch.randn(4, 15, width), torch.randn(4, 3, width)
    mask = torch.tensor([[True, True, False]] * 4)
    queries = torch.randn(4, 2, width)
    finer = [torch.randn(2, width, 5 * n, 3 * n) for n in (2, 4)]
    rows = head.read_rows(memory, grid, prompt, mask, queries, finer, images)
    assert rows.shape == (4, 2, 20, 12)
    own = [level[images] for level in finer]
    plain = head(memory, grid, prompt, mask, queries, own)
    torch.testing.assert_close(rows, plain, atol=1e-4, rtol=1e-3)
    weight = torch.randn_like(rows)
    weights = [p for n, p in head.named_parameters() if "semantic" not in n and ".2." not in n]
    ours = torch.autograd.grad((rows * weight).sum(), weights, allow_unused=True)
    theirs = torch.autograd.grad((plain * weight).sum(), weights, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)


# Queries beside the learned ones ----------------------------------------------------------------


def decoded(decoder: Decoder, alone: tuple[Tensor, Tensor] | None) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        memory, prompt = torch.randn(2, 12, 16), torch.randn(2, 4, 16)
        placed = decoder.place(torch.randn(12, 16))
    mask = torch.ones(2, 4, dtype=torch.bool)
    layers = decoder(memory, placed, (4, 3), prompt, mask, alone)
    return [t for layer in layers for t in (layer.queries, layer.boxes, layer.presence)]


def test_further_queries_change_nothing_of_the_learned() -> None:
    decoder = Decoder(16, 2, 32, 3, 6)
    plain = decoded(decoder, None)
    first = torch.randn(2, 5, 16), torch.rand(2, 5, 4) * 0.5 + 0.2
    more = decoded(decoder, first)
    for one, other in zip(plain, more, strict=True):
        part = other[:, :6] if other.ndim == 3 else other
        torch.testing.assert_close(one, part, atol=1e-5, rtol=1e-5)
    # Nor do they see each other.
    some = decoded(decoder, (first[0][:, :2], first[1][:, :2]))
    for one, other in zip(some, more, strict=True):
        if one.ndim == 3:
            torch.testing.assert_close(one[:, 6:], other[:, 6:8], atol=1e-5, rtol=1e-5)


def test_a_further_query_starts_at_its_box() -> None:
    decoder = Decoder(16, 2, 32, 1, 6)
    last = decoder.bbox_embed.layers[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    boxes = torch.rand(2, 3, 4) * 0.5 + 0.2
    _, refined, _ = decoded(decoder, (torch.randn(2, 3, 16), boxes))
    torch.testing.assert_close(refined[:, 6:], boxes)


# The whole ----------------------------------------------------------------------------------


def test_comparing_with_many_prompts_at_once() -> None:
    scoring = DotProductScoring(16, 32)
    tokens, prompts = torch.randn(2, 5, 16), torch.randn(3, 4, 16)
    mask = torch.rand(3, 4) > 0.3
    mask[:, 0] = True
    together = scoring.compare(tokens, prompts, mask)
    for k in range(3):
        both = prompts[k].expand(2, -1, -1), mask[k].expand(2, -1)
        torch.testing.assert_close(together[..., k], scoring(tokens, *both))


def tiny() -> Detector:
    return build(tiny_config(parts=("geometry", "masks"))).eval()


def test_prompts_about_several_images_at_once() -> None:
    net = tiny()
    pixels = torch.randn(2, 3, 112, 112)
    tokens = torch.randint(1, 99, (3, 16))
    images = torch.tensor([1, 0, 1])
    both = net.read_image(pixels)
    shown = both.take(images)
    answer = net.answer(shown, *net.read_prompt(shown, net.read_text(tokens)))
    for row, image in enumerate(images.tolist()):
        one = net.read_image(pixels[image : image + 1])
        own = net.answer(one, *net.read_prompt(one, net.read_text(tokens[row : row + 1])))
        torch.testing.assert_close(own.boxes[0], answer.boxes[row], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(own.presence[0], answer.presence[row], atol=1e-5, rtol=1e-4)


def test_what_the_mask_head_reads_is_made_once() -> None:
    net = tiny()
    image = net.read_image(torch.randn(1, 3, 112, 112))
    assert net.mask_features(image) is net.mask_features(image)
    assert [f.shape[-1] for f in net.mask_features(image)] == [16, 32]
    assert net.has("masks")
    assert not net.has("interactive")
