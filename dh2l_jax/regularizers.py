"""The regularisers of Eqs. (3)–(6): energies to minimise, each a mean over unordered pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dh2l_jax.checks import as_float, checked_rows, integers, mask, rows, unknown_name
from dh2l_jax.constraints import CONSTRAINTS, constraint_values, hinge
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.kernels import Patterns, kernel_matrices
from dh2l_jax.metrics import MetricLike, get_metric, mean_energy
from dh2l_jax.metrics.pairs import stacked_energy
from dh2l_jax.metrics.sums.groups import group_pair_sum
from dh2l_jax.numerics import safe_norm
from dh2l_jax.spheres import Level, sphere_levels

__all__ = [
    "center_energy",
    "classes_present",
    "group_energy",
    "hierarchical",
    "orthogonality",
    "weight_energy",
]

PAIRS = ("siblings", "all")
FEW = 4  # present rows are gathered if there are at most n/4 of them


def group_energy(
    W: ArrayLike,
    groups: ArrayLike,
    metric: MetricLike,
    *,
    where: ArrayLike | None = None,
    max_present: int | None = None,
    half_space: bool = False,
) -> jax.Array:
    """R_p: mean over groups with two or more members of the mean energy of the group's pairs.

        1/|G| Σ_{g ∈ G} 2/(n_g (n_g − 1)) Σ_{i<j in g} e(w_i, w_j),   G = {g : n_g ≥ 2}

    Args:
      W: (n, d), a vector a row.
      groups: (n,) int, any labels. Concrete groups cost the groups' own pairs only; groups that
        are traced by jit cost n×n.
      metric: a name, a `Metric` or a profile f(c, h).
      where: (n,) bool, the rows that take part (the classes of a mini-batch).
      max_present: an upper bound of the number of rows that take part, such as the size of the
        mini-batch: of many rows only so many are then looked at.
      half_space: as in `mean_energy`, in each group.

    Returns:
      Scalar; 0 if no group has two members.

    Raises:
      ValueError: shapes do not fit, unknown metric.
      TypeError: groups are not integers, `where` is not boolean.

    >>> W = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> group_energy(W, [0, 0, 7], "cosine").item()
    0.0

    Reference: DH²L, Eq. (5).
    """
    metric = get_metric(metric)
    W, where, groups = _rows_present(W, where, groups, max_present)
    groups = _groups(groups, W.shape[0])
    sizes = _group_sizes(groups, where)
    shared = sizes > 0
    num_groups = jnp.sum(shared / jnp.maximum(sizes, 1))
    counts = sizes * (2 * sizes - 1) if half_space else sizes * (sizes - 1) / 2
    weights = shared / (jnp.maximum(counts, 1) * jnp.maximum(num_groups, 1))
    return group_pair_sum(W, groups, weights, metric, half_space=half_space)


def center_energy(
    C: ArrayLike,
    metric: MetricLike,
    *,
    groups: ArrayLike | None = None,
    where: ArrayLike | None = None,
    max_present: int | None = None,
) -> jax.Array:
    """R_c: mean energy over the pairs of centres of a level, or over the pairs of siblings.

    Args:
      C: (n, d) relative centres, one a group of the level.
      metric: a name, a `Metric` or a profile f(c, h).
      groups: (n,) int, the parent of each centre: only pairs with one parent count, all with the
        same weight. None: every pair counts.
      where: (n,) bool, the centres that take part.
      max_present: as in `group_energy`.

    Returns:
      Scalar; 0 if there is no pair.

    Raises:
      ValueError: shapes do not fit, unknown metric.
      TypeError: groups are not integers, `where` is not boolean.

    >>> round(float(center_energy(jnp.array([[1.0, 0.0], [-1.0, 0.0]]), "cosine")), 4)
    -1.0

    Reference: DH²L, Eq. (6).
    """
    parents = np.zeros(jnp.shape(C)[:1], np.int32) if groups is None else groups
    C, where, parents = _rows_present(C, where, parents, max_present)
    if groups is None:
        return mean_energy(C, metric, where=where)
    parents = _groups(parents, C.shape[0])
    sizes = _group_sizes(parents, where)
    count = jnp.sum(jnp.maximum(sizes - 1, 0)) / 2
    return group_pair_sum(C, parents, (sizes > 0) / jnp.maximum(count, 1), metric)


def orthogonality(C: ArrayLike) -> jax.Array:
    """‖C Cᵀ − I‖_F of the centres as rows (the paper's ‖W_cᵀ W_c − I‖), gradient 0 at 0.

    Args:
      C: (groups, d).

    Raises:
      ValueError: C is not a matrix.

    >>> orthogonality(jnp.eye(3)).item()
    0.0

    Reference: DH²L, §4.1 (λ_o).
    """
    C, _ = rows(C)
    gram = jnp.dot(C, C.T, precision="highest")
    return safe_norm((gram - jnp.eye(C.shape[0], dtype=C.dtype)).reshape(-1))


def weight_energy(
    params: object,
    metric: MetricLike,
    *,
    include: Patterns = r"(^|/)kernel$",
    exclude: Patterns = (),
    method: str = "auto",
    half_space: bool = False,
) -> jax.Array:
    """R_E: sum over layers of the mean energy of the layer's weight vectors.

        Σ_layers 2/(n(n−1)) Σ_{i<j} e(w_i, w_j)

    Kernels of one shape are stacked and summed in one call.

    Args:
      params: any pytree; see `kernel_matrices` for what counts as a layer.
      metric: a name, a `Metric` or a profile f(c, h).
      include: regular expressions of the paths to use.
      exclude: regular expressions of the paths to leave out.
      method: as in `mean_energy`.
      half_space: as in `mean_energy`.

    Raises:
      ValueError: a pattern matches nothing, unknown metric or method.

    >>> params = {"a": {"kernel": jnp.eye(2)}, "b": {"kernel": jnp.ones((2, 2))}}
    >>> round(float(weight_energy(params, "cosine")), 4)
    1.0

    Reference: DH²L, §3.1 (E).
    """
    layers = defaultdict(list)
    for matrix in kernel_matrices(params, include, exclude).values():
        layers[matrix.shape].append(as_float(matrix))
    stacks = [jnp.stack(matrices) for matrices in layers.values()]
    return stacked_energy(stacks, metric, method=method, half_space=half_space)


def classes_present(labels: ArrayLike, num_classes: int) -> jax.Array:
    """(C,) bool: which classes occur in a batch of labels; the `where` of `hierarchical`.

    Args:
      labels: (b,) int.
      num_classes: C.

    >>> classes_present(jnp.array([2, 0, 2]), 4).tolist()
    [True, False, True, False]
    """
    return jnp.any(jax.nn.one_hot(labels, num_classes, dtype=bool), axis=0)


def hierarchical(
    levels: Sequence[Level] | Mapping[str, ArrayLike],
    hierarchy: Hierarchy,
    metric: MetricLike,
    *,
    where: ArrayLike | None = None,
    max_present: int | None = None,
    weight: float | Mapping[int, float] = 1.0,
    pairs: str = "siblings",
    constraints: Mapping[str, float] | None = None,
    outer_radius: float = 1.0,
    half_space: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """R: every level's R_p and R_c, weighted by λ_l, and the constraints that are switched on.

        R = Σ_l λ_l (R_p^(l,l−1) + R_c^(l,l−1)) + Σ_k λ_k mean max(0, −C_k)

    Args:
      levels: one `Level` a level 1..L (see `sphere_levels`), or a head's parameters.
      hierarchy: the tree.
      metric: a name, a `Metric` or a profile f(c, h).
      where: (C,) bool, the classes present in the mini-batch; an inner node and its group's
        centre take part when one class below them does. None: all ("global").
      max_present: an upper bound of the number of classes present, such as the size of the
        mini-batch; of a large tree only so many nodes of a level are then looked at.
      weight: λ_l, one for all levels or {level: λ}; levels not named have 0.
      pairs: centres of one level that make pairs: "siblings" or "all".
      constraints: {"C1": λ, "C2": λ, "C3": λ}, default none.
      outer_radius: r^(0) of the constraints.
      half_space: R_p of each group's W ∪ −W, as in `mean_energy`.

    Returns:
      (R, terms): terms holds each mean before its λ, under "R_p/<level>", "R_c/<level>",
      "C1/<level>", ….

    Raises:
      ValueError: the levels do not fit the tree, or an unknown option.
      TypeError: `where` is not boolean.

    >>> tree = Hierarchy.two_level([0, 0, 1])
    >>> head = {"surface_2": jnp.eye(3, 4), "center_2": -jnp.eye(2, 4)}
    >>> value, terms = hierarchical(head, tree, "cosine")
    >>> sorted(terms), round(float(value), 4)
    (['R_c/2', 'R_p/2'], 0.7071)

    Reference: DH²L, Eqs. (3)-(6).
    """
    if pairs not in PAIRS:
        raise ValueError(unknown_name("pairs", pairs, PAIRS))
    if isinstance(levels, Mapping):
        levels = sphere_levels(levels, hierarchy)
    _check_levels(levels, hierarchy)
    weights = _level_weights(weight, hierarchy)
    present = None if where is None else _nodes_present(hierarchy, where)
    terms, value = {}, jnp.zeros(())
    for number, level in enumerate(levels, 1):
        nodes, groups = (None, None) if present is None else (present[number], present[number - 1])
        if level.vectors is not None:
            terms[f"R_p/{number}"] = group_energy(
                level.vectors,
                hierarchy.parents(number),
                metric,
                where=nodes,
                max_present=max_present,
                half_space=half_space,
            )
            value += weights[number] * terms[f"R_p/{number}"]
        if level.center is not None:
            siblings = hierarchy.parents(number - 1) if pairs == "siblings" else None
            terms[f"R_c/{number}"] = center_energy(
                level.center, metric, groups=siblings, where=groups, max_present=max_present
            )
            value += weights[number] * terms[f"R_c/{number}"]
    active = _checked_constraints(constraints)
    if active:
        quantities = constraint_values(
            levels, hierarchy, present=present, outer_radius=outer_radius
        )
        for key, (quantity, mask) in quantities.items():
            if weight_k := active.get(key.split("/")[0]):
                terms[key] = hinge(quantity, where=mask)
                value += weight_k * terms[key]
    return value, terms


def _rows_present(
    W: ArrayLike, where: ArrayLike | None, groups: ArrayLike, max_present: int | None
) -> tuple[jax.Array, jax.Array, ArrayLike]:
    """As `rows`; the present ones alone, at most `max_present`, if that saves looking at many."""
    W, used = checked_rows(W, where)
    n = W.shape[0]
    if max_present is None or FEW * max_present > n:
        return *rows(W, where), groups
    index = jnp.nonzero(used, size=max_present, fill_value=n)[0]
    W = W.at[index].get(mode="fill", fill_value=0)
    groups = jnp.asarray(groups).at[index].get(mode="fill", fill_value=0)
    return W, index < n, groups


def _groups(groups: ArrayLike, n: int) -> np.ndarray | jax.Array:
    """Checked labels: concrete ones numbered from 0, or as jit traces them."""
    try:
        labels = np.asarray(groups)
    except jax.errors.TracerArrayConversionError:
        labels = jnp.asarray(groups)
    integers("groups", labels, (n,), "like the rows")
    return labels if isinstance(labels, jax.Array) else np.unique(labels, return_inverse=True)[1]


def _group_sizes(groups: np.ndarray | jax.Array, where: jax.Array) -> jax.Array:
    """n_g of the rows that take part, (n,) float32, and 0 for the others and where n_g is 1."""
    if isinstance(groups, jax.Array):
        together = where[None, :] & (groups[:, None] == groups[None, :])
        sizes = jnp.sum(together, axis=1, dtype=jnp.float32)
    else:
        sizes = jnp.zeros(groups.shape).at[groups].add(where)[groups]
    return jnp.where(where & (sizes > 1), sizes, 0)


def _nodes_present(hierarchy: Hierarchy, where: ArrayLike) -> list[jax.Array]:
    """For each level 0..L the nodes above a present class."""
    present = [mask(where, (hierarchy.num_classes,), "one entry a class")]
    for level in range(hierarchy.num_levels, 0, -1):
        above = jnp.zeros(hierarchy.size(level - 1), bool)
        present.append(above.at[hierarchy.parents(level)].max(present[-1]))
    return present[::-1]


def _check_levels(levels: Sequence[Level], hierarchy: Hierarchy) -> None:
    if len(levels) != hierarchy.num_levels:
        raise ValueError(f"the tree has {hierarchy.num_levels} levels, found {len(levels)}")
    for number, level in enumerate(levels, 1):
        for name, array, size in (
            ("vectors", level.vectors, hierarchy.size(number)),
            ("center", level.center, hierarchy.size(number - 1)),
        ):
            if array is not None and (array.ndim != 2 or array.shape[0] != size):
                raise ValueError(
                    f"{name} of level {number} must have shape ({size}, d), found {array.shape}"
                )


def _level_weights(weight: float | Mapping[int, float], hierarchy: Hierarchy) -> dict[int, float]:
    """λ_l of every level 1..L."""
    numbers = range(1, hierarchy.num_levels + 1)
    if not isinstance(weight, Mapping):
        return dict.fromkeys(numbers, weight)
    for number in weight:
        if number not in numbers:
            raise ValueError(f"weight names level {number!r}: levels are 1..{len(numbers)}")
    return {number: weight.get(number, 0.0) for number in numbers}


def _checked_constraints(constraints: Mapping[str, float] | None) -> dict[str, float]:
    """The constraints with λ ≠ 0."""
    constraints = constraints or {}
    for name in constraints:
        if name not in CONSTRAINTS:
            raise ValueError(unknown_name("constraint", name, CONSTRAINTS))
    return {name: weight for name, weight in constraints.items() if weight}
