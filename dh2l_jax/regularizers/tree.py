"""R of Eqs. (3) and (4): the energies of every level of the tree, and the constraints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dh2l_jax.checks import mask, unknown_name
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.metrics import MetricLike
from dh2l_jax.metrics.pairs import grouped_energies
from dh2l_jax.regularizers.constraints import (
    CONSTRAINTS,
    Present,
    constraint_values,
    hinge,
    rows_at,
)
from dh2l_jax.regularizers.energies import any_in_groups, center_energy, grouped, siblings
from dh2l_jax.spheres import Level, group_index, member_rows, sphere_levels, vector_places

__all__ = ["hierarchical"]


PAIRS = ("siblings", "all")


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
      where: what is present in the mini-batch, (C,) bool, the classes, or (num_nodes,) bool, of
        labels that may be inner nodes; see `classes_present`. A node takes part when it or one
        below it is present, a centre when a member of its group takes part. None: all ("global").
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
    weights, active = _level_weights(weight, hierarchy), _checked_constraints(constraints)
    present = _present(where, hierarchy)
    sums, found, terms, value = {True: {}, False: {}}, {}, {}, jnp.zeros((), _dtype(levels))
    for number, (level, (nodes, groups)) in enumerate(zip(levels, present, strict=True), 1):
        if level.vectors is not None:
            places, own = vector_places(level.vectors, hierarchy, number)
            sums[half_space][f"R_p/{number}"] = grouped(
                level.vectors, own, rows_at(nodes, places), max_present, half_space=half_space
            )
        if level.center is not None and pairs == "siblings":
            above = group_index(hierarchy.inner_nodes(number - 1), hierarchy, number - 1)
            sums[False][f"R_c/{number}"] = siblings(level.center, above, groups, max_present)
        elif level.center is not None:
            found[f"R_c/{number}"] = center_energy(
                level.center, metric, where=groups, max_present=max_present
            )
    for half in sums:
        found |= grouped_energies(sums[half], metric, half_space=half)
    for number in range(1, len(levels) + 1):
        for name in (f"R_p/{number}", f"R_c/{number}"):
            if name in found:
                terms[name] = found[name]
                value += weights[number] * terms[name]
    if active:
        quantities = constraint_values(
            levels, hierarchy, present=present, outer_radius=outer_radius
        )
        for key, (quantity, counts) in quantities.items():
            if key[:2] in active:
                terms[key] = hinge(quantity, where=counts)
                value += active[key[:2]] * terms[key]
    return value, terms


def _present(where: ArrayLike | None, hierarchy: Hierarchy) -> list[Present]:
    """For each level 1..L the nodes of that depth and the groups that take part."""
    if where is None:
        return [(None, None)] * hierarchy.num_levels
    C, labelled, groups = hierarchy.num_classes, None, None
    if jnp.shape(where) == (hierarchy.num_nodes,):
        labelled = mask(where, (hierarchy.num_nodes,), "one entry a node")
    like = f"one entry a class or ({hierarchy.num_nodes},) one a node"
    classes = mask(where, (C,), like) if labelled is None else labelled[:C]
    present: list[Present] = []
    for level in range(hierarchy.num_levels, 0, -1):
        inner, below = hierarchy.inner_nodes(level), groups
        if below is not None and labelled is not None:
            below |= labelled[inner.start : inner.stop]
        nodes = cast(jax.Array, member_rows(classes, below, hierarchy, level))
        above = group_index(hierarchy.members(level), hierarchy, level)
        size = len(hierarchy.inner_nodes(level - 1))
        groups = any_in_groups(nodes, above, size)
        present.append((nodes, groups))
    return present[::-1]


def _dtype(levels: Sequence[Level]) -> jnp.dtype:
    """Of the value: that of the arrays, at least float32."""
    return jnp.result_type(jnp.float32, *jax.tree.leaves(list(levels)))


def _check_levels(levels: Sequence[Level], hierarchy: Hierarchy) -> None:
    if len(levels) != hierarchy.num_levels:
        raise ValueError(f"the tree has {hierarchy.num_levels} levels, found {len(levels)}")
    for number, level in enumerate(levels, 1):
        nodes = hierarchy.members(number)
        classes = int((nodes < hierarchy.num_classes).sum())
        for name, array, sizes in (
            ("vectors", level.vectors, (len(nodes), classes or len(nodes))),
            ("center", level.center, (len(hierarchy.inner_nodes(number - 1)),)),
        ):
            if array is not None and (array.ndim != 2 or array.shape[0] not in sizes):
                shapes = " or ".join(f"({size}, d)" for size in dict.fromkeys(sizes))
                raise ValueError(
                    f"{name} of level {number} must have shape {shapes}, found {array.shape}"
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
