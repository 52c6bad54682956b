"""The stage of stride 32, which adds to the tokens of late fusion."""

from __future__ import annotations

import pytest
import torch

from efficientsam3.nn.late_coarse import CoarseStage


@pytest.mark.parametrize("grid", [(6, 6), (7, 5)])
def test_untrained_it_adds_nothing_and_learns_to(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    stage = CoarseStage(8, 12, 2)
    tokens = torch.randn(2, grid[0] * grid[1], 8)
    assert torch.equal(stage(tokens, grid), tokens)
    optimizer = torch.optim.Adam(stage.parameters(), 1e-2)
    wanted, losses = tokens.mean(1, keepdim=True), []
    for _ in range(60):
        loss = (stage(tokens, grid) - tokens - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_cell_changes_tokens_around_it_alone() -> None:
    torch.manual_seed(0)
    stage = CoarseStage(4, 6, 1)
    torch.nn.init.normal_(stage.up.weight)
    tokens = torch.randn(1, 32 * 32, 4)
    moved = tokens.clone()
    moved[0, 0] += 1
    change = (stage(moved, (32, 32)) - stage(tokens, (32, 32)))[0].abs().amax(-1)
    changed = change.unflatten(0, (32, 32)) > 1e-6
    rows, columns = changed.nonzero().unbind(1)
    assert changed[0, 0] and rows.max() < 10 and columns.max() < 10


def test_images_do_not_mix() -> None:
    torch.manual_seed(0)
    stage = CoarseStage(4, 6, 2)
    torch.nn.init.normal_(stage.up.weight)
    tokens = torch.randn(3, 30, 4)
    both = stage(tokens, (5, 6))
    for i in range(3):
        torch.testing.assert_close(both[i : i + 1], stage(tokens[i : i + 1], (5, 6)))
