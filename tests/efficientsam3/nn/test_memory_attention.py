"""Memory attention and rotary positions by their short ways on a CPU equal the plain formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from efficientsam3.nn.memory_attention import QUERIES, attend_narrow
from efficientsam3.nn.positions import rotate

DTYPES = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
CELLS, TOKENS, WIDTH, NARROW = QUERIES + 30, 77, 16, 4


def plain(q: Tensor, k: Tensor, values: Tensor, valid: Tensor | None) -> Tensor:
    logits = q.double() @ k.double().transpose(1, 2) * WIDTH**-0.5
    if valid is not None:
        logits = logits.masked_fill(~valid[:, None], -torch.inf)
    return logits.softmax(-1) @ values.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_with_narrow_values(dtype: torch.dtype, queries: int, padded: bool) -> None:
    q, k = torch.randn(queries, CELLS, WIDTH), torch.randn(2, TOKENS, WIDTH)
    values = torch.randn(2, TOKENS, NARROW)
    q, k, values = (t.to(dtype) for t in (q, k, values))
    valid = torch.ones(2, TOKENS, dtype=torch.bool)
    if padded:
        valid[1, 50:] = False
    read = attend_narrow(q, k, values, valid)
    assert read.dtype == dtype and read.shape == (2, CELLS, NARROW)
    expected = plain(q, k, values, valid if padded else None)
    torch.testing.assert_close(read.double(), expected, rtol=0, atol=DTYPES[dtype])


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("turned", [False, True])
def test_rotary_positions(dtype: torch.dtype, turned: bool) -> None:
    x = torch.randn(2, 7, 3, 8, dtype=dtype).requires_grad_()
    given = x.transpose(1, 2) if turned else x[:, :, 0]
    angle = torch.randn(7, 4)
    out = rotate(given, angle.cos(), angle.sin())
    pairs = torch.view_as_complex(given.detach().double().unflatten(-1, (-1, 2)))
    expected = torch.view_as_real(pairs * torch.polar(torch.ones(7, 4), angle)).flatten(-2)
    assert out.dtype == dtype and out.shape == given.shape
    error = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(out.detach().double(), expected, rtol=0, atol=error)
    # A rotation keeps lengths, so the gradient of the squared length is twice the input.
    out.double().square().sum().backward()
    assert x.grad is not None
    shown = x.grad.transpose(1, 2) if turned else x.grad[:, :, 0]
    torch.testing.assert_close(shown.double(), 2 * given.detach().double(), rtol=0, atol=10 * error)
    kept = given.detach().clone()
    rotate(kept, angle.cos(), angle.sin())
    assert torch.equal(kept, given)
