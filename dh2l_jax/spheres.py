"""Centres and surface vectors → projection vectors, logit vectors, radii.

Each group of siblings lives on a sphere around its centre. The parameters are the surface vectors
w_s (a node each) and the centre vectors w_c (a group each, relative to the level above).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dh2l_jax.checks import as_float, unknown_name
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.numerics import safe_norm

__all__ = [
    "CENTERS",
    "EPSILON",
    "LOGITS",
    "Level",
    "absolute_centers",
    "check_options",
    "head_logits",
    "head_shapes",
    "logit_vectors",
    "project",
    "radii",
    "sphere_levels",
    "vector_init",
]

CENTERS = ("free", "mean", "epsilon")
LOGITS = ("relative", "absolute")
EPSILON = 0.6  # default ratio of a child group's centre to its parent's projection vector


class Level(NamedTuple):
    """One level of the tree, as the regularisers see it.

    Attributes:
      vectors: (nodes, d) projection vectors, or None where the level stores no surface vectors.
      center: (groups, d) centres relative to the level above, or None at level 1 (the root's is 0).
    """

    vectors: jax.Array | None
    center: jax.Array | None = None


def project(surface: ArrayLike, center: ArrayLike, groups: ArrayLike) -> jax.Array:
    """w_i = w_s,i − w_c,g(i): surface vectors as seen from the centre of their group.

    Args:
      surface: (n, d).
      center: (groups, d).
      groups: (n,) int, the group of each row.

    >>> project(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0]]), jnp.array([0])).tolist()
    [[0.0, 2.0]]

    Reference: DH²L, Eqs. (1) and (2).
    """
    return as_float(surface) - as_float(center)[jnp.asarray(groups)]


def sphere_levels(
    params: Mapping[str, ArrayLike],
    hierarchy: Hierarchy,
    *,
    center: str | None = None,
    epsilon: float = EPSILON,
    logits: str = "relative",
) -> tuple[Level, ...]:
    """The levels 1..L of a head's parameters.

    Args:
      params: "surface_<l>" (size(l), d) for the leaves' level and any other, and "center_<l>"
        (size(l−1), d) for l = 2..L if the centres are free.
      hierarchy: the tree.
      center: "free" (the stored centres), "mean" (mean of the group's surface vectors; an inner
        node without a surface vector of its own stands at the mean of its children), "epsilon"
        (ε · the parent node's projection vector), or None to tell it from the parameters.
      epsilon: ε.
      logits: "relative" (w = w_s − w_c) or "absolute" (the stored vectors are the offsets w).

    Raises:
      ValueError: a missing parameter, a wrong shape, or an unknown option.

    Reference: DH²L, Eqs. (1) and (2).
    """
    center = _center_kind(params, hierarchy, center, logits)
    surfaces = _surfaces(params, hierarchy)
    means = _mean_centers(surfaces, hierarchy) if center == "mean" else {}
    levels: list[Level] = []
    for level in range(1, hierarchy.num_levels + 1):
        if level == 1:
            middle = None
        elif center == "free":
            shape = (hierarchy.size(level - 1), _width(surfaces))
            middle = _parameter(params, f"center_{level}", shape)
        elif center == "mean":
            middle = means[level]
        else:
            above = levels[-1].vectors
            if above is None:
                raise ValueError(
                    f"epsilon centres need 'surface_{level - 1}', found {_keys(params)}"
                )
            middle = epsilon * above
        vectors = surfaces.get(level)
        if vectors is not None and middle is not None and logits == "relative":
            vectors = project(vectors, middle, hierarchy.parents(level))
        levels.append(Level(vectors, middle))
    return tuple(levels)


def head_shapes(
    hierarchy: Hierarchy, d: int, *, center: str = "free", inner_surfaces: bool = False
) -> dict[str, tuple[int, int]]:
    """Names and shapes of a head's parameters, as `sphere_levels` reads them.

    "surface_<L>" (C, d) for the leaves; "center_<l>" (groups, d) for l = 2..L if the centres are
    free; "surface_<l>" of inner levels where something uses them.

    Args:
      hierarchy: the tree.
      d: width of the features.
      center: as in `sphere_levels`; "epsilon" needs the inner nodes' surface vectors.
      inner_surfaces: store them anyway, for losses on inner levels.

    Raises:
      ValueError: unknown `center`.

    >>> head_shapes(Hierarchy.two_level([0, 0, 1]), 8)
    {'surface_2': (3, 8), 'center_2': (2, 8)}

    Reference: DH²L, §3.2.
    """
    check_options(center)
    last, inner = hierarchy.num_levels, inner_surfaces or center == "epsilon"
    levels = range(1 if inner else last, last + 1)
    shapes = {f"surface_{level}": (hierarchy.size(level), d) for level in levels}
    if center == "free":
        shapes |= {f"center_{lv}": (hierarchy.size(lv - 1), d) for lv in range(2, last + 1)}
    return shapes


def vector_init(hierarchy: Hierarchy) -> Callable[..., jax.Array]:
    """An initialiser (key, shape, dtype) of each array of a head: N(0, 1/(2d)).

    So w_s − w_c has variance 1/d; a flat tree has one factor, N(0, 1/d).

    >>> vector_init(Hierarchy.flat(3))(jax.random.key(0), (3, 8)).shape
    (3, 8)

    Reference: DH²L, §3.2.
    """
    factors = 1 if hierarchy.num_levels == 1 else 2

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.normal(key, shape, dtype) * (factors * shape[-1]) ** -0.5

    return init


def head_logits(
    params: Mapping[str, ArrayLike],
    x: ArrayLike,
    hierarchy: Hierarchy,
    *,
    center: str | None = None,
    epsilon: float = EPSILON,
    logits: str = "relative",
) -> jax.Array:
    """x · w_i of all classes: what a hierarchical head computes, in any framework.

    Args:
      params: as in `sphere_levels`; `head_shapes` names them.
      x: (..., d) features.
      hierarchy: the tree.
      center: as in `sphere_levels`.
      epsilon: ε.
      logits: as in `logit_vectors`.

    Returns:
      (..., C).

    Raises:
      ValueError: as `sphere_levels`.

    >>> params = {"surface_2": jnp.eye(3), "center_2": jnp.zeros((2, 3))}
    >>> head_logits(params, jnp.array([1.0, 2.0, 3.0]), Hierarchy.two_level([0, 0, 1])).tolist()
    [1.0, 2.0, 3.0]

    Reference: DH²L, Eqs. (1) and (2).
    """
    levels = sphere_levels(params, hierarchy, center=center, epsilon=epsilon, logits=logits)
    return jnp.dot(x, logit_vectors(levels, hierarchy, logits=logits).T)


def check_options(center: str = "free", logits: str = "relative") -> None:
    """ValueError unless both are options of a head; the nearest one is named."""
    if center not in CENTERS:
        raise ValueError(unknown_name("center", center, CENTERS))
    if logits not in LOGITS:
        raise ValueError(unknown_name("logits", logits, LOGITS))


def absolute_centers(levels: Sequence[Level], hierarchy: Hierarchy) -> tuple[jax.Array, ...]:
    """Absolute centres of the groups of each level: w_c^(l) = Σ_{l' ≤ l} w_c^(l',l'−1).

    Returns:
      For l = 1..L an array (size(l−1), d); the root's is 0.

    Reference: DH²L, §3.2.
    """
    stored = next(level.vectors for level in levels if level.vectors is not None)
    centers = [jnp.zeros_like(stored[:1])]
    for number, level in enumerate(levels[1:], 2):
        assert level.center is not None
        centers.append(centers[-1][hierarchy.parents(number - 1)] + level.center)
    return tuple(centers)


def logit_vectors(
    levels: Sequence[Level],
    hierarchy: Hierarchy,
    *,
    logits: str = "relative",
    level: int | None = None,
) -> jax.Array:
    """(size(level), d): the vectors whose products with the features are the logits of a level.

    "relative": the projection vectors; "absolute": the absolute centre plus the offset.

    Args:
      levels: from `sphere_levels`.
      hierarchy: the tree.
      logits: "relative" or "absolute".
      level: 1..L; the leaves' if None.

    Raises:
      ValueError: the level stores no surface vectors.
    """
    level = hierarchy.num_levels if level is None else level
    vectors = levels[level - 1].vectors
    if vectors is None:
        raise ValueError(f"level {level} stores no surface vectors, so it has no logits")
    if logits == "relative":
        return vectors
    return absolute_centers(levels, hierarchy)[level - 1][hierarchy.parents(level)] + vectors


def radii(
    vectors: ArrayLike, groups: ArrayLike, num_groups: int, *, where: ArrayLike | None = None
) -> jax.Array:
    """Radius of each group's sphere: r = mean ‖w_i‖ of its members; 0 for an absent group.

    Args:
      vectors: (n, d) projection vectors.
      groups: (n,) int in 0..num_groups−1.
      num_groups: static number of groups.
      where: (n,) bool, the members that take part.

    Returns:
      (num_groups,).

    >>> radii(jnp.array([[3.0, 4.0], [0.0, 1.0]]), jnp.array([0, 0]), 1).tolist()
    [3.0]

    Reference: DH²L, appendix (constraints).
    """
    norms, groups = safe_norm(vectors), jnp.asarray(groups)
    mask = jnp.ones(norms.shape, bool) if where is None else jnp.asarray(where)
    total = jax.ops.segment_sum(jnp.where(mask, norms, 0), groups, num_groups)
    count = jax.ops.segment_sum(mask.astype(norms.dtype), groups, num_groups)
    return total / jnp.maximum(count, 1)


def _center_kind(
    params: Mapping[str, ArrayLike], hierarchy: Hierarchy, center: str | None, logits: str
) -> str:
    check_options(center or "free", logits)
    if center is None:
        inner = {f"surface_{level}" for level in range(1, hierarchy.num_levels)}
        if any(key.startswith("center_") for key in params):
            return "free"
        return "epsilon" if inner <= set(params) else "mean"
    return center


def _surfaces(params: Mapping[str, ArrayLike], hierarchy: Hierarchy) -> dict[int, jax.Array]:
    """The stored surface vectors by level; the leaves' must be there."""
    last = hierarchy.num_levels
    if f"surface_{last}" not in params:
        raise ValueError(f"expected the leaves' vectors 'surface_{last}', found {_keys(params)}")
    width = jnp.shape(params[f"surface_{last}"])[-1]
    return {
        level: _parameter(params, f"surface_{level}", (hierarchy.size(level), width))
        for level in range(1, last + 1)
        if f"surface_{level}" in params
    }


def _mean_centers(surfaces: dict[int, jax.Array], hierarchy: Hierarchy) -> dict[int, jax.Array]:
    centers: dict[int, jax.Array] = {}
    own = surfaces[hierarchy.num_levels]
    for level in range(hierarchy.num_levels, 1, -1):
        sizes = jnp.asarray(hierarchy.group_sizes(level), own.dtype)
        total = jax.ops.segment_sum(own, hierarchy.parents(level), hierarchy.size(level - 1))
        centers[level] = total / sizes[:, None]
        own = surfaces[level - 1] if level - 1 in surfaces else centers[level]
    return centers


def _parameter(params: Mapping[str, ArrayLike], key: str, shape: tuple[int, ...]) -> jax.Array:
    if key not in params:
        raise ValueError(f"expected the parameter {key!r} {shape}, found {_keys(params)}")
    value = as_float(params[key])
    if value.shape != shape:
        raise ValueError(f"parameter {key!r} must have shape {shape}, found {value.shape}")
    return value


def _width(surfaces: dict[int, jax.Array]) -> int:
    return next(iter(surfaces.values())).shape[1]


def _keys(params: Mapping[str, ArrayLike]) -> str:
    return ", ".join(params) or "no parameters"
