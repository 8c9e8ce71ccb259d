"""The other side of the comparison: the field's regularisers as papers print them, in PyTorch.

Eager mode and autograd on n×n matrices, which is how the published codes are written; eigenvalues
alone are taken on the smaller side, since the other has the same ones and no code could afford it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

__all__ = ["FORMULAS", "value_and_gradient"]

GAP = 1e-5
RIDGE = 1e-6
Matrix = torch.Tensor


def _cosines(W: Matrix) -> Matrix:
    U = functional.normalize(W, dim=1)
    return U @ U.T


def _others(W: Matrix) -> Matrix:
    """Cosines with the other rows, −1 on the diagonal."""
    return _cosines(W).masked_fill(torch.eye(len(W), dtype=torch.bool), -1)


def _mean(energies: Matrix) -> Matrix:
    n = len(energies)
    return energies.masked_fill(torch.eye(n, dtype=torch.bool), 0).sum() / (n * (n - 1))


def _gap(c: Matrix) -> Matrix:
    return (1 - c).clamp_min(GAP)


def _angle(c: Matrix) -> Matrix:
    return torch.arccos(c.clamp(-1 + GAP, 1 - GAP))


def _riesz(z: Matrix, s: int) -> Matrix:
    return _mean(z**-s if s else -torch.log(z))


def _mhe(angle: bool, s: int) -> Callable[[Matrix], Matrix]:
    def energy(W: Matrix) -> Matrix:
        c = _cosines(W)
        return _riesz(_angle(c) if angle else torch.sqrt(2 * _gap(c)), s)

    return energy


def _uniformface(W: Matrix) -> Matrix:
    return _mean(1 / (torch.cdist(W, W) + 1))


def _mar(W: Matrix) -> Matrix:
    angles = _angle(_cosines(W).abs())
    mean = _mean(angles)
    return -(mean - (_mean(angles**2) - mean**2))


def _uniformity(W: Matrix) -> Matrix:
    return torch.log(_mean(torch.exp(-4 * (1 - _cosines(W)))))


def _koleo(W: Matrix) -> Matrix:
    U = functional.normalize(W, dim=1)
    with torch.no_grad():
        nearest = (U @ U.T).fill_diagonal_(-1).argmax(dim=1)
    return -torch.log(torch.linalg.vector_norm(U - U[nearest], dim=1) + 1e-8).mean()


def _less_identity(W: Matrix) -> Matrix:
    return W @ W.T - torch.eye(len(W))


def _square(X: Matrix) -> Matrix:
    return (X * X).sum()


def _brock(W: Matrix) -> Matrix:
    return _square(W @ W.T * (1 - torch.eye(len(W))))


def _smaller(W: Matrix) -> Matrix:
    return W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W


def _srip(W: Matrix) -> Matrix:
    return (torch.linalg.eigvalsh(_smaller(W)) - 1).abs().max()


def _srip_steps(W: Matrix, iterations: int = 2) -> Matrix:
    """A power iteration on G − I."""
    x = torch.ones(W.shape[1])
    with torch.no_grad():
        for _ in range(iterations):
            x = functional.normalize(W.T @ (W @ x) - x, dim=0)
    return torch.linalg.vector_norm(W.T @ (W @ x) - x)


def _gram_determinant(W: Matrix) -> Matrix:
    return -torch.logdet(torch.exp(2 * _cosines(W) - 2) + RIDGE * torch.eye(len(W)))


def _spectrum(W: Matrix) -> Matrix:
    return torch.linalg.eigvalsh(_smaller(W)).clamp_min(1e-12)


def _uer(W: Matrix) -> Matrix:
    p = _spectrum(W)
    p = p / p.sum()
    return (p * torch.log(p)).sum() + math.log(len(p))


def _von_neumann(W: Matrix) -> Matrix:
    p = _spectrum(W)
    return (p * torch.log(p) - p).sum() + len(W)


def _log_det(W: Matrix) -> Matrix:
    G = W @ W.T
    return G.trace() - torch.logdet(G + 1e-3 * torch.eye(len(W))) - len(W)


def _comhe(W: Matrix, k: int = 40, draws: int = 20) -> Matrix:
    total = torch.zeros(())
    for _ in range(draws):
        V = W @ torch.randn(k, W.shape[1]).T
        total = total + _mhe(False, 2)(torch.cat([V, -V]))
    return total / draws


def _chords(W: Matrix, pole: Matrix) -> Matrix:
    """chord² to a pole."""
    return 2 - 2 * functional.normalize(W, dim=1) @ functional.normalize(pole, dim=0)


def _mhc(W: Matrix, pole: Matrix) -> Matrix:
    chords = _chords(W, pole)
    return -(torch.logsumexp(-10 * chords, dim=0) - math.log(len(W))) / 10


def _ocnn(K: Matrix) -> Matrix:
    """K: (kh, kw, cin, cout)."""
    filters = K.permute(3, 2, 0, 1)
    size = filters.shape[-1]
    found = functional.conv2d(filters, filters, padding=size - 1)
    target = torch.zeros_like(found)
    target[:, :, size - 1, size - 1] = torch.eye(len(filters))
    return _square(found - target)


def _covariance(X: Matrix, count: int) -> Matrix:
    X = X - X.mean(dim=0)
    return X.T @ X / count


def _beside_diagonal(C: Matrix) -> Matrix:
    return _square(C) - _square(C.diagonal())


def _barlow(X: Matrix) -> Matrix:
    Z = (X - X.mean(dim=0)) / X.std(dim=0, correction=0)
    return _beside_diagonal(Z.T @ Z / len(X))


def _nuclear(X: Matrix) -> Matrix:
    return torch.linalg.svdvals(X).sum()


def _ole(X: Matrix, labels: Matrix) -> Matrix:
    of_classes = [_nuclear(X[labels == c]).clamp_min(1) for c in labels.unique()]
    return (sum(of_classes, torch.zeros(())) - _nuclear(X)) / len(X)


FORMULAS: dict[str, Callable[..., Matrix]] = {
    **{f"mhe_{kind}{s}": _mhe(kind == "a", s) for kind in "sa" for s in range(3)},
    "abs_cosine": lambda W: _mean(_cosines(W).abs()),
    "cosine2": lambda W: _mean(_cosines(W) ** 2),
    "gaussian": lambda W: _mean(torch.exp(-4 * (1 - _cosines(W)))),
    "angular_hinge": lambda W: _mean(_cosines(W).abs().clamp_min(0)),
    "uniformface": _uniformface,
    "mar": _mar,
    "uniformity": _uniformity,
    "r_mhp": lambda W: torch.linalg.vector_norm(functional.normalize(W, dim=1).sum(dim=0)),
    "mma": lambda W: -_angle(_others(W).max(dim=1).values).mean(),
    "regularface": lambda W: _others(W).max(dim=1).values.mean(),
    "koleo": _koleo,
    "mhs": lambda W: 2 * _others(W).max() - 2,
    "coherence": lambda W: _cosines(W).abs().fill_diagonal_(0).max(),
    "so": lambda W: _square(_less_identity(W)),
    "dso": lambda W: _square(_less_identity(W)) + _square(_less_identity(W.T)),
    "brock": _brock,
    "mc": lambda W: _less_identity(W).abs().max(),
    "srip": _srip,
    "srip(iterations=2)": _srip_steps,
    "spectral": lambda W: torch.linalg.matrix_norm(W, 2) ** 2 / 2,
    "mgd": _gram_determinant,
    "dpp": lambda W: -torch.logdet(_cosines(W) + RIDGE * torch.eye(len(W))),
    "uer": _uer,
    "von_neumann": _von_neumann,
    "log_det": _log_det,
    "comhe": _comhe,
    "mhp": lambda W, pole: -(1 / _chords(W, pole)).mean(),
    "mhc": _mhc,
    "ocnn": _ocnn,
    "decov": lambda X: _beside_diagonal(_covariance(X, len(X))) / 2,
    "vicreg_covariance": lambda X: _beside_diagonal(_covariance(X, len(X) - 1)) / X.shape[1],
    "barlow": _barlow,
    "ole": _ole,
}
"""Name, with options where there are some → formula."""


def value_and_gradient(name: str, W: Matrix, **given: Any) -> tuple[Matrix, Matrix]:
    """Of a formula, called with what it needs beside W."""
    W = W.detach().requires_grad_()
    value = FORMULAS[name](W, **given)
    (gradient,) = torch.autograd.grad(value, W)
    return value.detach(), gradient
