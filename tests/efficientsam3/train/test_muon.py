"""Muon for matrices beside AdamW for everything else."""

from __future__ import annotations

import torch
from torch import nn

from efficientsam3.train.muon import COEFFICIENTS, STEPS, MuonAdamW, is_matrix, orthogonalize
from efficientsam3.train.optim import (
    load_named_state,
    make_optimizer,
    named_state,
    parameter_groups,
)
from efficientsam3.train.settings import LoopSettings

SETTINGS = LoopSettings(steps=1, optimizer="muon", lr=0.02, weight_decay=0.01)


def regression() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2))
    x = torch.randn(64, 6)
    return net, x, torch.stack([x[:, 0] * 2, x[:, 1] - x[:, 2]], 1)


def train(
    net: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, n: int
) -> float:
    for _ in range(n):
        loss = (net(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_singular_values_become_about_one() -> None:
    torch.manual_seed(0)
    for shape in ((20, 30), (30, 20), (20, 50), (50, 20), (20, 400)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert float(values.min()) > 0.5 and float(values.max()) < 1.3


def test_long_matrices_have_the_iterations_of_all_others() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(12, 30, dtype=torch.float64) * torch.logspace(-2, 0, 12)[:, None]
    x = matrix / matrix.norm()
    for _ in range(STEPS):
        a, b, c = COEFFICIENTS
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    torch.testing.assert_close(orthogonalize(matrix), x, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(orthogonalize(matrix.T), x.T, rtol=1e-3, atol=1e-5)


def test_it_learns() -> None:
    net, x, y = regression()
    with torch.no_grad():
        before = float((net(x) - y).square().mean())
    after = train(net, make_optimizer(parameter_groups(net, SETTINGS), SETTINGS), x, y, 200)
    assert after < 0.02 * before


def test_vectors_follow_adamw() -> None:
    ours, theirs = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    muon = MuonAdamW([{"params": [ours], "weight_decay": 0.0}], 0.1, (0.9, 0.98))
    adamw = torch.optim.AdamW([theirs], 0.1, (0.9, 0.98), weight_decay=0.0)
    for step in range(3):
        ours.grad = theirs.grad = torch.arange(5.0) - step
        muon.step()
        adamw.step()
    torch.testing.assert_close(ours, theirs)


def test_depthwise_kernels_and_embeddings_without_decay_are_no_matrices() -> None:
    assert is_matrix(torch.zeros(4, 3)) and is_matrix(torch.zeros(4, 3, 3, 3))
    assert not is_matrix(torch.zeros(4, 1, 3, 3)) and not is_matrix(torch.zeros(1, 4))
    table = nn.Parameter(torch.ones(4, 3))
    table.grad = torch.ones(4, 3)
    optimizer = MuonAdamW([{"params": [table], "weight_decay": 0.0}], 0.1)
    optimizer.step()
    torch.testing.assert_close(table.detach(), torch.full((4, 3), 0.9))


def test_a_resumed_run_takes_the_same_steps() -> None:
    net, x, y = regression()
    optimizer = make_optimizer(parameter_groups(net, SETTINGS), SETTINGS)
    train(net, optimizer, x, y, 3)
    weights = {k: v.clone() for k, v in net.state_dict().items()}
    state = {
        n: {k: v.clone() for k, v in s.items()} for n, s in named_state(net, optimizer).items()
    }
    wanted = train(net, optimizer, x, y, 3)
    other, _, _ = regression()
    other.load_state_dict(weights)
    resumed = make_optimizer(parameter_groups(other, SETTINGS), SETTINGS)
    load_named_state(other, resumed, state)
    assert train(other, resumed, x, y, 3) == wanted
