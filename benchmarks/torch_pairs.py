"""The other side of the comparison: mean energies as one writes them in PyTorch.

Eager mode and autograd; every metric is its formula on the n×n matrices of the similarities that it
needs, and of no others.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

__all__ = ["mean_energy", "value_and_gradient"]

CLIP = 0.99
Matrix = torch.Tensor


class _Sign(torch.autograd.Function):
    """The saturated straight-through estimator."""

    @staticmethod
    def forward(ctx, x: Matrix) -> Matrix:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, *gradients: Matrix) -> Matrix:
        (x,) = ctx.saved_tensors
        return gradients[0] * (x.abs() <= 1)


class _Similarities:
    """c and h of all pairs of rows, computed when asked for."""

    def __init__(self, W: Matrix):
        self._U = torch.nn.functional.normalize(W, dim=1)

    @property
    def c(self) -> Matrix:
        return self._U @ self._U.T

    @property
    def h(self) -> Matrix:
        # Without exact zeros the ternary code of threshold 0 is the binary one.
        S = _Sign.apply(self._U)
        return (S @ S.T) / self._U.shape[1]


def _angle(x: Matrix) -> Matrix:
    return torch.arccos(x.clamp(-CLIP, CLIP)) / math.pi


def _harmonic(a: Matrix, b: Matrix) -> Matrix:
    return a * b / (a + b).clamp_min(1e-7)


_MEANS: dict[str, Callable[[Matrix, Matrix], Matrix]] = {
    "am": lambda a, b: (a + b) / 2,
    "gm": lambda a, b: a * b,
    "hm": lambda a, b: 4 * _harmonic(a, b),
    "gm_std": lambda a, b: torch.sqrt((a * b).clamp_min(1e-12)),
    "hm_std": lambda a, b: 2 * _harmonic(a, b),
}


def _energies(metric: str, W: Matrix) -> Matrix:
    s = _Similarities(W)
    if metric == "cosine":
        return s.c
    if metric == "n_euclidean2":
        return 1 / (2 - 2 * s.c.clamp(-CLIP, CLIP))
    if metric == "angular2":
        return torch.arccos(s.c.clamp(-CLIP, CLIP)) ** -2
    if metric in ("d_h_bin", "d_h_ter"):
        return (1 + s.h) / 2
    prime, name = metric.endswith("_prime"), metric.removeprefix("d_").removesuffix("_prime")
    if name.endswith("_cos"):
        mean = name.removesuffix("_cos")
        code_cosine = s.h if prime else torch.sin(math.pi / 2 * s.h)
        return _MEANS["hm_std" if mean == "hm" else mean]((code_cosine + 1) / 2, (s.c + 1) / 2)
    mean = _MEANS[name.removeprefix("cos_")]
    angle = mean(_angle(s.h) if prime else (1 - s.h) / 2, _angle(s.c))
    return (torch.cos(math.pi * angle) + 1) / 2 if name.startswith("cos_") else 1 - angle


def mean_energy(W: Matrix, metric: str) -> Matrix:
    """Mean over the pairs i ≠ j of the rows of W (n, d)."""
    n = W.shape[0]
    energies = _energies(metric, W)
    return energies.masked_fill(torch.eye(n, dtype=torch.bool), 0).sum() / (n * (n - 1))


def value_and_gradient(W: Matrix, metric: str) -> tuple[Matrix, Matrix]:
    """The mean energy and its gradient."""
    W = W.detach().requires_grad_()
    value = mean_energy(W, metric)
    (gradient,) = torch.autograd.grad(value, W)
    return value.detach(), gradient
