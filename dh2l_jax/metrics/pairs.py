"""All pairs: pairwise matrices, and means and sums over the pairs i < j of rows.

How a sum is done — in closed form, dense, tiled or over a ring of devices (the modules `*_sums`) —
is chosen here from the metric and the size, and nobody else knows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike

from dh2l_jax.checks import rows
from dh2l_jax.metrics.blocks import pair_count
from dh2l_jax.metrics.profile import MetricLike, opposite, with_opposites
from dh2l_jax.metrics.sums.plan import BLOCK, SEPARATE_FROM, _plan, _sum
from dh2l_jax.metrics.sums.stacks import stacked_sum
from dh2l_jax.metrics.table import get_metric

__all__ = ["mean_energy", "pairwise", "stacked_energy"]


PairFn = Callable[[jax.Array, jax.Array], jax.Array]


def pairwise(fn: PairFn, U: ArrayLike, V: ArrayLike | None = None) -> jax.Array:
    """All values fn(U[i], V[j]): vmap of vmap of any pair function.

    Args:
      fn: (d,), (d,) → array; options can be bound with `functools.partial`.
      U: (n, d).
      V: (m, d), or None for U itself.

    Returns:
      (n, m, ...).

    Raises:
      ValueError: U or V is not a matrix, or their widths differ.

    >>> import dh2l_jax as dh2l
    >>> pairwise(dh2l.code_similarity, jnp.array([[1.0, -1.0], [1.0, 1.0]])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    U = jnp.asarray(U)
    V = U if V is None else jnp.asarray(V)
    if U.ndim != 2 or V.ndim != 2 or U.shape[1] != V.shape[1]:
        raise ValueError(f"expected U (n, d) and V (m, d), found {U.shape} and {V.shape}")
    return jax.vmap(jax.vmap(fn, in_axes=(None, 0)), in_axes=(0, None))(U, V)


class _Options(TypedDict, total=False):
    where: ArrayLike | None
    method: str
    block: int
    half_space: bool
    mesh: Mesh | None
    axis: str


@overload
def mean_energy(
    W: ArrayLike, metric: MetricLike, *, explain: Literal[True], **options: Unpack[_Options]
) -> tuple[jax.Array, str]: ...


@overload
def mean_energy(
    W: ArrayLike,
    metric: MetricLike,
    *,
    explain: Literal[False] = False,
    **options: Unpack[_Options],
) -> jax.Array: ...


def mean_energy(
    W: ArrayLike,
    metric: MetricLike,
    *,
    where: ArrayLike | None = None,
    method: str = "auto",
    block: int = BLOCK,
    half_space: bool = False,
    mesh: Mesh | None = None,
    axis: str = "data",
    explain: bool = False,
) -> jax.Array | tuple[jax.Array, str]:
    """Mean over pairs i < j of e(w_i, w_j); 0 where there is no pair.

        2 / (n(n−1)) Σ_{i<j} e(w_i, w_j)

    Args:
      W: (n, d), a vector a row.
      metric: a name, a `Metric` or a profile f(c, h).
      where: (n,) bool, True for the rows that take part; equal to dropping the others.
      method: "closed" (affine metrics, O(nd)), "dense" (n×n), "tiled" (memory for a few tiles),
        or "auto", which chooses by metric and size; see `explain`.
      block: rows of a tile, at most.
      half_space: the mean over all pairs of W ∪ −W, so that opposite vectors repel too.
      mesh: rows are spread over an axis of these devices, none of which ever holds all of them.
      axis: name of that axis.
      explain: say also how it was computed, and why.

    Returns:
      Scalar, at least float32; with `explain` (scalar, text).

    Raises:
      ValueError: W is not a matrix, `where` has another length, unknown metric, method or axis,
        "closed" for a metric that is not affine.
      TypeError: `where` is not boolean.

    >>> W = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> round(float(mean_energy(W, "cosine")), 4)
    -0.3333
    >>> mean_energy(W, "d_am_cos", explain=True)[1]
    'dense: 3 rows are at most 1,024'

    Reference: DH²L, §3.1 (E of a layer), Eqs. (7)-(10).
    """
    W, where = rows(W, where)
    total, why = _sum(W, where, get_metric(metric), method, block, half_space, mesh, axis)
    mean = total / jnp.maximum(pair_count(where, half_space=half_space), 1)
    return (mean, why) if explain else mean


def stacked_energy(
    stacks: Sequence[jax.Array], metric: MetricLike, *, method: str, half_space: bool
) -> jax.Array:
    """Σ of the mean energies of all matrices of stacks (matrices, n, d); options as there.

    The matrices of few rows are summed together, so that they share a program.

    >>> stacks = [jnp.ones((2, 3, 4)), jnp.ones((1, 2, 5))]
    >>> round(float(stacked_energy(stacks, "cosine", method="auto", half_space=False)), 4)
    3.0
    """
    metric, total, small = get_metric(metric), jnp.zeros(()), []
    of_each = functools.partial(mean_energy, metric=metric, method=method, half_space=half_space)
    pairs = with_opposites(metric) if half_space else metric
    for W in stacks:
        count, n = W.shape[:2]
        if 1 < n < SEPARATE_FROM and _plan(method, pairs, n, None, "").method == "dense":
            small.append(W)
            total += count * opposite(metric) / (2 * n - 1) if half_space else 0
        else:
            total += jnp.sum(jax.vmap(of_each)(W))
    if not small:
        return total
    vectors = [W.shape[1] * (2 if half_space else 1) for W in small]
    scales = tuple(2 / (n * (n - 1)) for n in vectors)
    return jnp.add(total, stacked_sum(pairs, scales, small))
