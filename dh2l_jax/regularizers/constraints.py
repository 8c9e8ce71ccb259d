"""The geometric constraints C1–C3 of the spheres, each a quantity that should be ≥ 0.

C1  r^(l−1) − r^(l)                     a child's sphere is not larger than its parent's
C2  r^(l−1) − (‖w_c^(l,l−1)‖ + r^(l))   it lies inside its parent's; implies C1
C3  ‖c_i − c_j‖ − (r_i + r_j)           siblings' spheres do not overlap
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dh2l_jax.checks import as_float
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.numerics import safe_norm
from dh2l_jax.spheres import Level, group_index, radii, vector_places

__all__ = [
    "CONSTRAINTS",
    "Present",
    "constraint_values",
    "containment",
    "hinge",
    "margin",
    "radius_order",
    "rows_at",
    "satisfaction",
]

# Which nodes of a level and which of its groups take part; None for all.
Present = tuple[jax.Array | None, jax.Array | None]

CONSTRAINTS = ("C1", "C2", "C3")


def radius_order(r_outer: ArrayLike, r_inner: ArrayLike) -> jax.Array:
    """C1 = r^(l−1) − r^(l), elementwise.

    >>> round(float(radius_order(1.0, 0.4)), 4)
    0.6

    Reference: DH²L, appendix, C1.
    """
    return as_float(r_outer) - as_float(r_inner)


def containment(r_outer: ArrayLike, offset: ArrayLike, r_inner: ArrayLike) -> jax.Array:
    """C2 = r^(l−1) − (‖w_c^(l,l−1)‖ + r^(l)), elementwise; `offset` is the norm ‖w_c‖.

    >>> round(float(containment(1.0, 0.5, 0.4)), 4)
    0.1

    Reference: DH²L, appendix, C2.
    """
    return as_float(r_outer) - (as_float(offset) + as_float(r_inner))


def margin(C: ArrayLike, r: ArrayLike, groups: Sequence[int] | np.ndarray | None = None):
    """C3 = ‖c_i − c_j‖ − (r_i + r_j) for every pair i < j of siblings.

    Args:
      C: (n, d) centres.
      r: (n,) radii.
      groups: (n,) concrete int, the parent of each centre; None if all are siblings.

    Returns:
      (pairs,) in row-major order of (i, j).

    Raises:
      ValueError: the shapes do not fit.

    >>> margin(jnp.array([[0.0, 0.0], [3.0, 4.0]]), jnp.array([1.0, 2.0])).tolist()
    [2.0]

    Reference: DH²L, appendix, C3.
    """
    C, r = as_float(C), as_float(r)
    if C.ndim != 2 or r.shape != C.shape[:1]:
        raise ValueError(f"expected C (n, d) and r (n,), found {C.shape} and {r.shape}")
    i, j = _sibling_pairs(C.shape[0], groups)
    return safe_norm(C[i] - C[j]) - (r[i] + r[j])


def hinge(C: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Mean of max(0, −C) over all entries (or those in `where`); 0 if there are none.

    >>> hinge(jnp.array([-1.0, 3.0])).item()
    0.5

    Reference: DH²L, Eq. (4), appendix.
    """
    C = as_float(C)
    mask = jnp.ones(C.shape, bool) if where is None else jnp.asarray(where)
    return jnp.sum(jnp.where(mask & (C < 0), -C, 0)) / jnp.maximum(jnp.sum(mask), 1)


def satisfaction(C: ArrayLike, *, where: ArrayLike | None = None) -> tuple[jax.Array, jax.Array]:
    """(fraction of C ≥ 0, worst violation max(0, −min C)); (1, 0) if there are no entries.

    >>> [x.item() for x in satisfaction(jnp.array([-1.0, 3.0]))]
    [0.5, 1.0]
    """
    C = as_float(C)
    mask = jnp.ones(C.shape, bool) if where is None else jnp.asarray(where)
    violated = jnp.sum(mask & (C < 0), dtype=C.dtype) / jnp.maximum(jnp.sum(mask), 1)
    return 1 - violated, jnp.max(jnp.where(mask, -C, 0), initial=0)


def constraint_values(
    levels: Sequence[Level],
    hierarchy: Hierarchy,
    *,
    present: Sequence[Present] | None = None,
    outer_radius: float = 1.0,
) -> dict[str, tuple[jax.Array, ArrayLike | None]]:
    """The quantities C1–C3 of every level that has spheres, with the mask of those that count.

    A group of which no present member has a vector has no radius of its own; what it holds is
    compared with the next sphere outwards, in the end with r^(0).

    Args:
      levels: one a level 1..L.
      hierarchy: the tree.
      present: for each level 1..L which of its nodes and groups take part, or None for all.
      outer_radius: r^(0).

    Returns:
      "C1/<level>", "C2/<level>", "C3/<level>" → (values, mask or None).

    Reference: DH²L, Eq. (4), appendix.
    """
    values = {}
    outer = jnp.full(
        (1,), outer_radius, jnp.result_type(jnp.float32, *jax.tree.leaves(list(levels)))
    )
    for number, level in enumerate(levels, 1):
        if level.vectors is not None:
            there = (None, None) if present is None else present[number - 1]
            r, counts = _spheres(level.vectors, hierarchy, number, there)
            values[f"C1/{number}"] = (radius_order(outer, r), counts)
            if level.center is not None:
                values[f"C2/{number}"] = (containment(outer, safe_norm(level.center), r), counts)
                above = hierarchy.inner_nodes(number - 1)
                siblings = group_index(above, hierarchy, number - 1)
                i, j = _sibling_pairs(len(siblings), siblings)
                both = None if counts is None else jnp.asarray(counts)[i] & jnp.asarray(counts)[j]
                values[f"C3/{number}"] = (margin(level.center, r, siblings), both)
            # Of a group that is absent nothing is asked below, so its r = 0 does not matter.
            outer = r if counts is there[1] else jnp.where(jnp.asarray(counts), r, outer)
        if number < hierarchy.num_levels:
            outer = outer[group_index(hierarchy.inner_nodes(number), hierarchy, number)]
    return values


def _spheres(
    vectors: jax.Array, hierarchy: Hierarchy, level: int, present: Present
) -> tuple[jax.Array, ArrayLike | None]:
    """The radii of a level's groups, and which of them have one; None for all."""
    places, groups = vector_places(vectors, hierarchy, level)
    members, size = rows_at(present[0], places), len(hierarchy.inner_nodes(level - 1))
    r = radii(vectors, groups, size, where=members)
    if len(places) == len(hierarchy.members(level)):
        return r, present[1]
    if members is None:
        return r, np.bincount(groups, minlength=size) > 0
    return r, jax.ops.segment_max(members, groups, num_segments=size)


def rows_at(mask: jax.Array | None, places: np.ndarray) -> jax.Array | None:
    """The entries of a mask at these places, which may be all of them."""
    return mask if mask is None or len(mask) == len(places) else mask[places]


def _sibling_pairs(n: int, groups: Sequence[int] | np.ndarray | None):
    i, j = np.triu_indices(n, 1)
    if groups is None:
        return i, j
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise ValueError(f"groups must have shape {(n,)} like the centres, found {groups.shape}")
    same = groups[i] == groups[j]
    return i[same], j[same]
