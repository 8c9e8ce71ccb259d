"""Where vectors lie on the sphere: seen in projections, from a pole, by their sum and their angles.

Energies of projections and the moments of angles are sums over pairs of the engine; a pole costs
O(nd). A pole is a parameter that ascends the loss while the vectors descend it:
`dh2l_jax.regularizers.transform.ascend`.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from dh2l_jax.checks import rows, unknown_name
from dh2l_jax.metrics.blocks import product
from dh2l_jax.metrics.pairs import mean_energy
from dh2l_jax.metrics.table import GAP, get_metric
from dh2l_jax.numerics import angle_of_gap, safe_norm, safe_normalize, safe_sqrt

__all__ = ["comhe", "mar", "mhc", "mhp", "projected_energy", "r_mhp"]

KINDS = ("random", "angle", "adversarial")


def comhe(
    W: ArrayLike,
    where: ArrayLike | None = None,
    *,
    key: jax.Array,
    kind: Literal["random", "angle", "adversarial"] = "random",
    k: int = 40,
    draws: int = 20,
    lr: float = 0.1,
) -> jax.Array:
    """Compressive hyperspherical energy: the energy of the rows in random projections.

        mean over P of E(W Pᵀ),   P_ij ~ N(0, 1),   E = mhe_s2 of the half-space

    "angle" and "adversarial" take a step on each P first, and the gradient passes through it:

        angle         P − lr ∇_P ‖cos(W Pᵀ) − cos(W)‖_F   (all n² entries)
        adversarial   P + lr ∇_P mhe_s2(W Pᵀ)             (full space)

    Args:
      W: (n, d), a vector a row.
      where: (n,) bool, True for the rows that take part; equal to dropping the others.
      key: of the projections; a new one at each step, as `jax.random.fold_in(key, step)`.
      kind: "random", "angle" or "adversarial".
      k: rows of P.
      draws: projections.
      lr: of the step on P.

    Returns:
      Scalar, at least float32.

    Raises:
      ValueError: W is not a matrix, `where` has another length, unknown kind.
      TypeError: `where` is not boolean.

    >>> bool(comhe(jnp.eye(4), key=jax.random.key(0)) > comhe(jnp.eye(2), key=jax.random.key(0)))
    True

    Reference: Lin et al., Regularizing neural networks via minimizing hyperspherical energy, CVPR
    2020.
    """
    W, where = rows(W, where)
    P = jax.random.normal(key, (draws, k, W.shape[1]), W.dtype)

    def add(total: jax.Array, P: jax.Array) -> tuple[jax.Array, None]:
        return total + projected_energy(W, P, where, kind=kind, lr=lr), None

    return lax.scan(add, jnp.zeros((), W.dtype), P)[0] / max(draws, 1)


def projected_energy(
    W: ArrayLike,
    P: ArrayLike,
    where: ArrayLike | None = None,
    *,
    kind: Literal["random", "angle", "adversarial"] = "random",
    lr: float = 0.1,
) -> jax.Array:
    """`comhe` of one projection.

    Args:
      W: (n, d), a vector a row.
      P: (k, d), before its step.
      where: (n,) bool, True for the rows that take part; equal to dropping the others.
      kind: "random", "angle" or "adversarial".
      lr: of the step on P.

    Raises:
      ValueError: W is not a matrix, `where` has another length, unknown kind.
      TypeError: `where` is not boolean.

    >>> A = jnp.array([[1.0, 2, 2], [2, -1, 0], [0, 3, -4], [1, 1, 1]])
    >>> round(float(projected_energy(A, jnp.array([[2.0, -1, 0], [0, 1, 1]]))), 4)
    1.0563
    """
    if kind not in KINDS:
        raise ValueError(unknown_name("kind", kind, KINDS))
    W, where = rows(W, where)
    projection = jnp.asarray(P, W.dtype)

    def energy(P: jax.Array, half_space: bool) -> jax.Array:
        return mean_energy(product(W, P.T), "mhe_s2", where=where, half_space=half_space)

    if kind == "angle":
        projection -= lr * jax.grad(_angle_gap, 1)(W, projection)
    elif kind == "adversarial":
        projection += lr * jax.grad(energy)(projection, half_space=False)
    return energy(projection, half_space=True)


def _angle_gap(W: jax.Array, P: jax.Array) -> jax.Array:
    """‖cos(W Pᵀ) − cos(W)‖_F from products of the columns, without an n×n matrix."""
    U, V = safe_normalize(W), safe_normalize(product(W, P.T))
    squares = [jnp.sum(product(a.T, b) ** 2) for a, b in ((V, V), (V, U), (U, U))]
    return safe_sqrt(squares[0] - 2 * squares[1] + squares[2])


def mhp(W: ArrayLike, pole: ArrayLike, where: ArrayLike | None = None, *, s: int = 2) -> jax.Array:
    """Hyperspherical polarisation: minus the mean energy of the rows with a pole.

        −mean_i f_s(‖û_i − v̂‖),   f_s(z) = z⁻ˢ, or −log z for s = 0

    The vectors minimise it, so that no place of the sphere is far from all of them; the pole
    maximises it, looking for such a place.

    Args:
      W: (n, d), a vector a row.
      pole: (d,), of any length.
      where: (n,) bool, True for the rows that take part; equal to dropping the others.
      s: 0, 1 or 2.

    Returns:
      Scalar, at least float32; 0 without rows.

    Raises:
      ValueError: W is not a matrix, `where` has another length, the pole another width, another s.
      TypeError: `where` is not boolean.

    >>> A = jnp.array([[1.0, 2, 2], [2, -1, 0], [0, 3, -4], [1, 1, 1]])
    >>> round(float(mhp(A, jnp.array([1.0, 1, -1]))), 4)
    -1.1628

    Reference: Liu et al., Learning with hyperspherical uniformity, AISTATS 2021.
    """
    if s not in (0, 1, 2):
        raise ValueError(unknown_name("s", s, "012"))
    c, where = _with_pole(W, pole, where)
    energies = get_metric(f"mhe_s{s}").energy(c, c)
    return -jnp.sum(jnp.where(where, energies, 0)) / jnp.maximum(jnp.sum(where), 1)


def mhc(
    W: ArrayLike, pole: ArrayLike, where: ArrayLike | None = None, *, gamma: float = 10.0
) -> jax.Array:
    """Hyperspherical covering: how far a pole is from the nearest row, smoothly.

        −log mean_i exp(−γ ‖û_i − v̂‖²) / γ

    The vectors minimise it, and the pole maximises it, looking for the largest hole.

    Args:
      W: (n, d), a vector a row.
      pole: (d,), of any length.
      where: (n,) bool, True for the rows that take part; equal to dropping the others.
      gamma: γ > 0; the larger, the more the nearest row counts alone.

    Returns:
      Scalar, at least float32; 0 without rows.

    Raises:
      ValueError: W is not a matrix, `where` has another length, the pole another width.
      TypeError: `where` is not boolean.

    >>> A = jnp.array([[1.0, 2, 2], [2, -1, 0], [0, 3, -4], [1, 1, 1]])
    >>> round(float(mhc(A, jnp.array([1.0, 1, -1]))), 4)
    0.522

    Reference: Liu et al., Learning with hyperspherical uniformity, AISTATS 2021.
    """
    c, where = _with_pole(W, pole, where)
    exponents, count = -2 * gamma * (1 - c), jnp.sum(where)
    most = lax.stop_gradient(jnp.max(exponents, where=where, initial=-4 * gamma))
    total = jnp.sum(jnp.where(where, jnp.exp(exponents - most), 0))
    softmin = jnp.log(jnp.maximum(count, 1)) - jnp.log(jnp.where(count > 0, total, 1)) - most
    return jnp.where(count > 0, softmin / gamma, 0)


def _with_pole(
    W: ArrayLike, pole: ArrayLike, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
    """The cosines of the rows with a pole, (n,), and the mask."""
    W, where = rows(W, where)
    pole = jnp.asarray(pole, W.dtype)
    if pole.shape != W.shape[1:]:
        raise ValueError(f"expected a pole {W.shape[1:]} like a row of W, found {pole.shape}")
    return product(safe_normalize(W), safe_normalize(pole)), where


def r_mhp(W: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    """Relaxed polarisation: the length of the sum of the unit rows.

        ‖Σ_i û_i‖

    0 for every set of vectors whose mean is 0, and always so in half-space: no measure of
    diversity by itself. Its gradient at 0 is 0.

    Args:
      W: (n, d), a vector a row.
      where: (n,) bool, True for the rows that take part; equal to dropping the others.

    Returns:
      Scalar, at least float32.

    Raises:
      ValueError: W is not a matrix, or `where` has another length.
      TypeError: `where` is not boolean.

    >>> r_mhp(jnp.array([[0.0, 2.0], [0.0, 3.0]])).item()
    2.0

    Reference: Liu et al., Learning with hyperspherical uniformity, AISTATS 2021.
    """
    return safe_norm(jnp.sum(safe_normalize(rows(W, where)[0]), axis=0))


def mar(W: ArrayLike, where: ArrayLike | None = None, *, gamma: float = 1.0) -> jax.Array:
    """Mutual angular regulariser: wide angles between lines, all of them alike.

        −(mean φ − γ var φ) over pairs,   φ = arccos |c|

    φ has a kink at its maximum, the right angle. Parallel rows have the field's clip: the angle of
    1 − |c| = 1e−5, and no gradient.

    Args:
      W: (n, d), a vector a row.
      where: (n,) bool, True for the rows that take part; equal to dropping the others.
      gamma: γ, of the population variance.

    Returns:
      Scalar, at least float32; 0 where there is no pair.

    Raises:
      ValueError: W is not a matrix, or `where` has another length.
      TypeError: `where` is not boolean.

    >>> A = jnp.array([[1.0, 2, 2], [2, -1, 0], [0, 3, -4], [1, 1, 1]])
    >>> round(float(mar(A)), 4)
    -1.036

    Reference: Xie, Deng & Xing, Diversifying restricted Boltzmann machine, KDD 2015.
    """
    W, where = rows(W, where)
    # From the right angle, where most are: the square of the mean then takes no digits off.
    lack = mean_energy(W, _lack, where=where)
    mean = jnp.where(jnp.sum(where) > 1, jnp.pi / 2, 0) - lack
    if not gamma:
        return -mean
    return gamma * (mean_energy(W, _squared_lack, where=where) - lack**2) - mean


def _lack(c: jax.Array, h: jax.Array) -> jax.Array:
    del h
    return jnp.pi / 2 - angle_of_gap(jnp.maximum(1 - jnp.abs(c), GAP))


def _squared_lack(c: jax.Array, h: jax.Array) -> jax.Array:
    return _lack(c, h) ** 2
