"""Muon for matrices and kernels, AdamW for everything else, in one optimizer.

Muon (Keller Jordan, 2024) replaces the momentum of a matrix by the nearest orthogonal one. Its step
is scaled to the size of AdamW's (arXiv 2502.16982), so that both share learning rate and decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz polynomial, which brings singular values near 1 quickly."""
STEPS = 5
ADAMW_RMS = 0.2
"""Usual root mean square of an entry of AdamW's step, in units of the learning rate."""


class MuonAdamW(torch.optim.Optimizer):
    """Muon for parameters of two and more dimensions that decay, AdamW for all others.

    Kernels of convolutions are matrices of (outputs, inputs x rows x columns); depthwise kernels,
    embeddings and vectors belong to AdamW.

    Args:
        params: Parameter groups, with "weight_decay".
        lr: Learning rate.
        betas: Decay rates of AdamW's running averages; the first one is Muon's momentum, too.
        eps: Added to AdamW's denominator.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step.

        Args:
            closure: Computes the loss again; it is called once, before the step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    matrix = is_matrix(p) and group["weight_decay"] > 0
                    self._update(p, p.grad, group, matrix)
        return loss

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any], matrix: bool) -> None:
        lr, (first, second) = group["lr"], group["betas"]
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(p)
            if not matrix:
                state["exp_avg_sq"] = torch.zeros_like(p)
        state["step"] += 1
        p.mul_(1 - lr * group["weight_decay"])
        average = state["exp_avg"].lerp_(grad, 1 - first)
        if matrix:
            ahead = torch.lerp(grad, average, first).flatten(1)  # Nesterov's momentum
            scale = ADAMW_RMS * math.sqrt(max(ahead.shape))
            p.add_(orthogonalize(ahead).view_as(p), alpha=-lr * scale)
            return
        squares = state["exp_avg_sq"].lerp_(grad.square(), 1 - second)
        count = float(state["step"])
        denominator = (squares / (1 - second**count)).sqrt_().add_(group["eps"])
        p.addcdiv_(average, denominator, value=-lr / (1 - first**count))


def is_matrix(p: Tensor) -> bool:
    """Whether a parameter is a matrix, or a kernel that mixes channels.

    Args:
        p: The parameter.
    """
    return (
        p.dim() >= 2
        and p.shape[0] > 1
        and p[0].numel() > 1
        and not (p.dim() == 4 and p.shape[1] == 1)
    )


def orthogonalize(matrix: Tensor) -> Tensor:
    """The nearest matrix whose singular values are about 1, by Newton-Schulz iterations.

    Every iteration multiplies the matrix by a polynomial of its Gram matrix. Where the matrix is
    much longer than wide, the polynomials are multiplied first, and the matrix once at the end.

    Args:
        matrix: (N, M).

    Returns:
        (N, M).
    """
    x = matrix.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    x = _iterate_gram(x) if x.shape[1] >= 2 * x.shape[0] else _iterate(x)
    return (x.T if tall else x).to(matrix.dtype)


def _polynomial(gram: Tensor) -> Tensor:
    """The factor of an iteration without its multiple of the identity."""
    _, b, c = COEFFICIENTS
    return torch.addmm(gram, gram, gram, beta=b, alpha=c)


def _iterate(x: Tensor) -> Tensor:
    for _ in range(STEPS):
        x = torch.addmm(x, _polynomial(x @ x.T), x, beta=COEFFICIENTS[0])
    return x


def _iterate_gram(x: Tensor) -> Tensor:
    gram = x @ x.T
    product = torch.eye(len(gram), device=x.device)
    for step in range(STEPS):
        factor = _polynomial(gram)
        factor.diagonal().add_(COEFFICIENTS[0])
        product = factor @ product
        if step + 1 < STEPS:
            gram = factor @ gram @ factor
    return product @ x
