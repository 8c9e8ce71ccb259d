"""All pairs: pairwise matrices, and means and sums over the pairs i < j of rows.

Rows are checked and their norms measured here, once. How they are summed is chosen by
`dh2l_jax.metrics.sums.plan`; whatever the way, it forms the gradient together with the value, and
`_sum` is the one derivative of all of them. The tangent ⟨gradient, dW⟩ is linear in dW, so reverse
mode costs what the way itself does, and forward mode, second derivatives and everything that JAX
builds of them come for nothing: they differentiate the gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, cast, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from dh2l_jax.checks import checked_rows, rows, unknown_name
from dh2l_jax.metrics.blocks import Cotangent, Rows, pair_count, tile_rows
from dh2l_jax.metrics.maxima import Maxima, largest
from dh2l_jax.metrics.profile import (
    Metric,
    MetricLike,
    exponential,
    half_space_metric,
    split_affine,
    sum_of_opposites,
)
from dh2l_jax.metrics.similarity import inverse_norms
from dh2l_jax.metrics.sums.closed import Closed
from dh2l_jax.metrics.sums.dense import Dense
from dh2l_jax.metrics.sums.groups import Groups, grouped_sum, small_window, window_sums, windows_of
from dh2l_jax.metrics.sums.plan import SPLIT_FROM, Method, Plan, choose
from dh2l_jax.metrics.sums.sampled import Sampled, sampled_sum
from dh2l_jax.metrics.sums.stacks import Part, joined, stacked_sum
from dh2l_jax.metrics.sums.tiled import Tiled
from dh2l_jax.metrics.table import METRICS, get_metric

__all__ = [
    "Grouped",
    "explain",
    "grouped_energies",
    "mean_energy",
    "pairwise",
    "stacked_energy",
    "with_gradient",
]

MAXIMA = ("max", "row_max")
REDUCTIONS = ("mean", "log_mean_exp", *MAXIMA)

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


# The one derivative. A `total` is a function (options, W, *constants) → (value, gradient of W) of
# this module, with hashable options; W may be several arrays, or lists of them with a value each.

Total = Callable[..., tuple[Any, Any]]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _sum(total: Total, options: Any, W: Any, *constants: Any) -> Any:
    return _value(total, options, W, *constants)


@_sum.defjvp
def _sum_jvp(total: Total, options: Any, primals, tangents):
    value, gradient = _value_and_gradient(total, options, *primals)
    products = jax.tree.map(lambda g, dW: jnp.sum(g * dW), gradient, tangents[0])

    def tangent(v: jax.Array, products: Any) -> jax.Array:
        return functools.reduce(jnp.add, jax.tree.leaves(products)).astype(v.dtype)

    return value, jax.tree.map(tangent, value, products)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _value_and_gradient(total: Total, options: Any, W: Any, *constants: Any):
    # One unit to reverse mode, which would else take a loop apart into what does and does not
    # depend on the rows, and keep every constant of a tile as an array of its size.
    return total(options, W, *constants)


@_value_and_gradient.defjvp
def _value_and_gradient_jvp(total: Total, options: Any, primals, tangents):
    return jax.jvp(functools.partial(total, options), primals, tangents)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _value(total: Total, options: Any, W: Any, *constants: Any) -> Any:
    # Compiled even where nobody jits: the compiler drops the gradient.
    return total(options, W, *constants)[0]


with_gradient = _sum  # of any `total`: what is no sum over pairs is built on it too


def _of_pairs(plan: Plan, W: jax.Array, where: jax.Array) -> Cotangent:
    return plan(Rows(W, inverse_norms(W, plan.rest.epsilon), where))


def _of_sample(plan: Plan, W: jax.Array, where: jax.Array, index: jax.Array) -> Cotangent:
    return sampled_sum(functools.partial(_of_pairs, plan), W, where, index)


def _of_maxima(what: Maxima, W: jax.Array, where: jax.Array) -> Cotangent:
    return largest(what, Rows(W, inverse_norms(W, what.metric.epsilon), where))


def _of_groups(metric: Metric, W: jax.Array, groups: Groups) -> Cotangent:
    r = inverse_norms(W, metric.epsilon)
    return grouped_sum(metric, Rows(W, r, groups.weights > 0), groups)


def _of_stacks(metric: Metric, layers: list[jax.Array], weights: list[jax.Array]):
    (value,), (gradients,) = stacked_sum(metric, [list(map(Part, layers, weights))])
    return value, gradients


def _plan(metric: Metric, n: int, method: Method, half_space: bool, **options: Any) -> Plan:
    metric = half_space_metric(metric) if half_space else metric
    has_closed_form = metric.square or split_affine(metric)[1] is None
    if method in ("closed", Closed()) and not has_closed_form:
        names = ", ".join([*(name for name, m in METRICS.items() if m.affine), "cosine2"])
        raise ValueError(f"metric {metric.name!r} has no closed form; those that do are {names}")
    return choose(metric, n, method, **options)


# The doors.


class _Options(TypedDict, total=False):
    where: ArrayLike | None
    method: Method
    block: int | None
    half_space: bool
    reduction: str
    sample: Sampled | None
    key: jax.Array | None
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
    method: Method = "auto",
    block: int | None = None,
    half_space: bool = False,
    reduction: str = "mean",
    sample: Sampled | None = None,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
    axis: str = "data",
    explain: bool = False,
) -> jax.Array | tuple[jax.Array, str]:
    """Mean over pairs i < j of e(w_i, w_j); 0 where there is no pair.

        2 / (n(n−1)) Σ_{i<j} e(w_i, w_j)

    Every derivative that JAX offers: forward, reverse and second ones, under jit, vmap and scan.

    Args:
      W: (n, d), a vector a row.
      metric: a name, a `Metric` or a profile f(c, h).
      where: (n,) bool, True for the rows that take part; equal to dropping the others.
      method: "closed" (affine metrics, O(nd)), "dense" (n×n), "tiled" (memory for a few tiles), or
        a value such as `Tiled(block=128)` or `Ring(mesh, "data")`; "auto" chooses by metric and
        size, see `explain`.
      block: rows of a tile, at most; by default 640, on GPU up to 2,048 (see `blocks.tile_rows`).
      half_space: the mean over all pairs of W ∪ −W, so that opposite vectors repel too.
      reduction: "mean" of e over pairs; "log_mean_exp", log mean exp(e); "max" of all pairs; or
        "row_max", the mean over rows of the largest e with another row.
      sample: `Sampled(tiles, rows)`: estimated from the pairs inside of disjoint tiles of random
        rows. Value and gradient of "mean" are unbiased; "log_mean_exp" comes out too small, on
        average by Var μ̂/(2μ²) of the mean μ inside of the log.
      key: of the random rows, a new one for each draw.
      mesh: rows are spread over an axis of these devices, none of which ever holds all of them.
      axis: name of that axis.
      explain: say also how it was computed, and why.

    Returns:
      Scalar, at least float32; with `explain` (scalar, text).

    Raises:
      ValueError: W is not a matrix, `where` has another length, unknown metric, method, reduction
        or axis, "closed" for a metric that is not affine, a maximum or a sample over a mesh, a
        maximum of a sample, a sample without a key or a key without a sample.
      TypeError: `where` is not boolean.

    >>> W = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> round(float(mean_energy(W, "cosine")), 4)
    -0.3333
    >>> mean_energy(W, "d_am_cos", explain=True)[1]
    'dense: 3 rows are at most 1,024'

    Reference: DH²L, §3.1 (E of a layer), Eqs. (7)-(10).
    """
    _check(reduction, sample, key, mesh)
    # A sample never looks at the rows that take no part; else they are zeros from here on.
    W, where = (rows if sample is None else checked_rows)(W, where)
    metric, n = get_metric(metric), W.shape[0]
    if reduction in MAXIMA:
        what = Maxima(metric, reduction == "row_max", half_space, Tiled(block).block)
        value = _sum(_of_maxima, what, W, where) if n else jnp.zeros((), W.dtype)
        most, on_gpu = tile_rows(block, W.shape[1])
        tile = f"{most} rows" + (f", on GPU {on_gpu:,}" if on_gpu > most else "")
        why = f"{reduction}: tiles of at most {tile}, then {n:,} pairs"
        return (value, why) if explain else value
    if reduction == "log_mean_exp":
        metric, most = exponential(metric)
    size = n if sample is None else min(n, sample.rows)
    options = {"width": W.shape[1], "block": block, "mesh": mesh, "axis": axis}
    plan = _plan(metric, size, method, half_space, **options)
    of_what, constants, why = _of_pairs, (where,), plan.why
    if sample is not None and n > 1:
        of_what, constants = _of_sample, (where, sample.draw(cast(jax.Array, key), where))
        why = f"sampled: {sample.tiles:,} tiles of {size:,} of {n:,} rows, each {why}"
    total = jnp.zeros((), W.dtype)
    if n > 1:
        total = _sum(of_what, plan._replace(why=""), W, *constants)
    if half_space:
        total += sum_of_opposites(metric, W, where.astype(W.dtype))
    count = pair_count(where, W.dtype, half_space=half_space)
    mean = total / jnp.maximum(count, 1)
    if reduction == "log_mean_exp":
        mean = jnp.where(count > 0, jnp.log(jnp.where(count > 0, mean, 1)) + most, 0)
    return (mean, why) if explain else mean


def _check(reduction: str, sample: Sampled | None, key: Any, mesh: Mesh | None) -> None:
    """Refuses what does not go together."""
    if reduction not in REDUCTIONS:
        raise ValueError(unknown_name("reduction", reduction, REDUCTIONS))
    if mesh is not None and (sample is not None or reduction in MAXIMA):
        what = reduction if sample is None else "sample"
        raise ValueError(f"rows on a mesh have no {what} yet: leave out mesh")
    if sample is not None and reduction in MAXIMA:
        raise ValueError(
            f"a sample sees few neighbours, so its {reduction} is too small: leave out sample"
        )
    if sample is not None and key is None:
        raise ValueError("a sample is random: add key=jax.random.key(step)")
    if sample is None and key is not None:
        raise ValueError("a key is for a sample: add sample=Sampled(tiles=64, rows=128)")


def explain(
    W: ArrayLike,
    metric: MetricLike,
    *,
    method: Method = "auto",
    block: int | None = None,
    half_space: bool = False,
    mesh: Mesh | None = None,
    axis: str = "data",
) -> str:
    """How `mean_energy` sums the pairs of W, and why; arguments as there.

    >>> explain(jnp.ones((2_000, 8)), "d_am_cos")
    'tiled: 2,000 rows are more than 1,024; in closed form what is affine in c'
    """
    n, width = jnp.shape(W)
    options = {"width": width, "block": block, "mesh": mesh, "axis": axis}
    return _plan(get_metric(metric), n, method, half_space, **options).why


class Grouped(NamedTuple):
    """Rows of groups, whose pairs inside each group are summed.

    Attributes:
      W: (n, d), cleaned by `checks.rows`.
      groups: (n,) integers, the group of each row; concrete ones are numbered from 0.
      weights: (n,) v_g of each row's group, 0 for rows that take no part; a constant to autodiff.
    """

    W: jax.Array
    groups: np.ndarray | jax.Array
    weights: jax.Array


def grouped_energies(
    sums: Mapping[str, Grouped], metric: MetricLike, *, half_space: bool = False
) -> dict[str, jax.Array]:
    """Of each Σ_g v_g Σ_{i<j in g} e(w_i, w_j); with `half_space`, of the groups' W ∪ −W.

    Few rows share a program, as in `stacked_energy`. Concrete groups cost few pairs besides their
    own; groups that jit traces cost n×n.
    """
    metric = get_metric(metric)
    pairs = half_space_metric(metric) if half_space else metric
    values, small = {}, {}
    for name, (W, groups, weights) in sums.items():
        weights = lax.stop_gradient(weights)
        windows = None if isinstance(groups, jax.Array) else windows_of(groups)
        if windows and (window := small_window(groups, windows)):
            small[name] = W, weights, window
        else:
            values[name] = _sum(_of_groups, pairs, W, Groups(jnp.asarray(groups), weights, windows))
    if small:
        few = map(list, zip(*small.values(), strict=True))
        values |= zip(small, _sum(window_sums, pairs, *few), strict=True)
    for name, (W, _, weights) in sums.items():
        values[name] += sum_of_opposites(metric, W, weights) if half_space else 0
    return values


def stacked_energy(
    stacks: Sequence[jax.Array],
    metric: MetricLike,
    *,
    method: Method,
    half_space: bool,
    weights: Sequence[float] | None = None,
) -> jax.Array:
    """Σ of the mean energies of all matrices of stacks (matrices, n, d); options as `mean_energy`.

    The matrices of few rows are summed together, so that they share a program. Each stack may have
    a weight.

    >>> stacks = [jnp.ones((2, 3, 4)), jnp.ones((1, 2, 5))]
    >>> round(float(stacked_energy(stacks, "cosine", method="auto", half_space=False)), 4)
    3.0
    """
    metric = get_metric(metric)
    weights = [1.0] * len(stacks) if weights is None else weights
    total = jnp.zeros((), jnp.result_type(jnp.float32, *stacks))
    of_each = functools.partial(mean_energy, metric=metric, method=method, half_space=half_space)
    pairs = half_space_metric(metric) if half_space else metric
    small, others = [], []
    for W, weight in zip(stacks, weights, strict=True):
        count, n, d = W.shape
        way = _plan(metric, n, method, half_space, width=d).way
        if not (1 < n < SPLIT_FROM and isinstance(way, Dense)):
            others.append((W, weight))
            continue
        vectors, ones = n * (2 if half_space else 1), jnp.ones((count, n), W.dtype)
        small.append((W, weight * 2 / (vectors * (vectors - 1)) * ones))
        if half_space:
            total += weight * sum_of_opposites(metric, W, ones) / (n * (2 * n - 1))
    for W, weight in joined(others):
        total += weight * jnp.sum(jax.vmap(of_each)(W))
    if not small:
        return total
    return total + _sum(_of_stacks, pairs, *map(list, zip(*small, strict=True)))
