"""Centres and surface vectors → projection vectors, logit vectors, radii.

Each group of siblings lives on a sphere around its centre. The parameters are the surface vectors
w_s (a node each) and the centre vectors w_c (a group each, relative to the level above).

"surface_<L>" holds a vector for every class, however deep it lies; "surface_<l>" of an inner level
one for each of its inner nodes; "center_<l>" one for each inner node of level l−1. A class of depth
p < L belongs to its parent's group at level p, and to none below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
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
    "group_index",
    "head_logits",
    "head_shapes",
    "logit_vectors",
    "member_rows",
    "project",
    "radii",
    "sphere_levels",
    "vector_init",
    "vector_places",
]

CENTERS = ("free", "mean", "epsilon")
LOGITS = ("relative", "absolute")
EPSILON = 0.6  # default ratio of a child group's centre to its parent's projection vector


class Level(NamedTuple):
    """One level of the tree, as the regularisers see it.

    Attributes:
      vectors: (nodes, d) projection vectors of the nodes of that depth, inner nodes only where they
        store surface vectors; None where no node of the level does.
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
      params: "surface_<L>" (C, d), "surface_<l>" (inner nodes, d) of any inner level, and
        "center_<l>" (inner nodes of level l−1, d) for l = 2..L if the centres are free.
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
    leaves = surfaces[hierarchy.num_levels]
    means = _mean_centers(surfaces, hierarchy) if center == "mean" else {}
    levels: list[Level] = []
    for level in range(1, hierarchy.num_levels + 1):
        if level == 1:
            middle = None
        elif center == "free":
            shape = (len(hierarchy.inner_nodes(level - 1)), leaves.shape[1])
            middle = _parameter(params, f"center_{level}", shape)
        elif center == "mean":
            middle = means[level]
        elif level - 1 not in surfaces:
            raise ValueError(f"epsilon centres need 'surface_{level - 1}', found {_keys(params)}")
        else:
            inner = hierarchy.members(level - 1) >= hierarchy.num_classes
            above = cast(jax.Array, levels[-1].vectors)
            middle = epsilon * (above if inner.all() else above[inner])
        vectors = member_rows(leaves, surfaces.get(level), hierarchy, level)
        if vectors is not None and middle is not None and logits == "relative":
            vectors = project(vectors, middle, vector_places(vectors, hierarchy, level)[1])
        levels.append(Level(vectors, middle))
    return tuple(levels)


def member_rows(
    leaves: jax.Array, inner: jax.Array | None, hierarchy: Hierarchy, level: int
) -> jax.Array | None:
    """Of (C, ...) `leaves` and (inner nodes, ...) `inner` the rows of the nodes of that depth.

    They stand in the order of the level's table; without `inner` those of the classes alone, and
    None if there are none.

    >>> tree = Hierarchy.from_paths({"sun": "", "gull": "birds", "tern": "birds"})
    >>> member_rows(jnp.array([1, 2, 3]), jnp.array([7]), tree, 1).tolist()
    [1, 7]
    """
    nodes, C = hierarchy.members(level), hierarchy.num_classes
    if level == hierarchy.num_levels:
        return leaves if len(nodes) == C else leaves[nodes]
    if not np.any(nodes < C):
        return inner
    if inner is None:
        return leaves[nodes[nodes < C]]
    start = hierarchy.inner_nodes(level).start
    return jnp.concatenate([leaves, inner])[np.where(nodes < C, nodes, nodes - start + C)]


def vector_places(
    vectors: jax.Array, hierarchy: Hierarchy, level: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each row of a level's vectors its place among the level's nodes, and its group."""
    nodes = hierarchy.members(level)
    places = np.arange(len(nodes))
    if len(vectors) < len(nodes):
        places = np.flatnonzero(nodes < hierarchy.num_classes)
    return places, group_index(nodes[places], hierarchy, level)


def group_index(nodes: np.ndarray | range, hierarchy: Hierarchy, level: int) -> np.ndarray:
    """The number of the group of each of these nodes of a level, 0 for all of level 1."""
    return hierarchy.node_parents()[np.asarray(nodes, int)] - hierarchy.inner_nodes(level - 1).start


def head_shapes(
    hierarchy: Hierarchy, d: int, *, center: str = "free", inner_surfaces: bool = False
) -> dict[str, tuple[int, int]]:
    """Names and shapes of a head's parameters, as `sphere_levels` reads them.

    "surface_<L>" (C, d) for the classes; "center_<l>" (groups, d) for l = 2..L if the centres are
    free; "surface_<l>" (inner nodes, d) of inner levels where something uses them.

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
    sizes = {level: len(hierarchy.inner_nodes(level)) for level in range(1, last)}
    shapes = {f"surface_{level}": (size, d) for level, size in sizes.items() if inner}
    shapes[f"surface_{last}"] = (hierarchy.num_classes, d)
    if center == "free":
        shapes |= {f"center_{level + 1}": (size, d) for level, size in sizes.items()}
    return shapes


def vector_init(hierarchy: Hierarchy) -> Callable[..., jax.Array]:
    """An initialiser (key, shape, dtype) of each array of a head: N(0, 1/(2d)).

    So w_s − w_c has variance 1/d; a class at level 1 has one factor, N(0, 1/d).

    >>> vector_init(Hierarchy.flat(3))(jax.random.key(0), (3, 8)).shape
    (3, 8)

    Reference: DH²L, §3.2.
    """
    factors = 1 if hierarchy.num_levels == 1 else 2
    shallow = np.asarray(hierarchy.class_depths) == 1

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        values = jax.random.normal(key, shape, dtype) * (factors * shape[-1]) ** -0.5
        if np.any(shallow) and len(shallow) == shape[0]:  # no level has so many inner nodes
            values = jnp.where(shallow[:, None], values * 2**0.5, values)
        return values

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
      For l = 1..L an array (groups, d), a group for each inner node of level l−1; the root's is 0.

    Reference: DH²L, §3.2.
    """
    stored = next(level.vectors for level in levels if level.vectors is not None)
    centers = [jnp.zeros_like(stored[:1])]
    for number, level in enumerate(levels[1:], 2):
        assert level.center is not None
        above = group_index(hierarchy.inner_nodes(number - 1), hierarchy, number - 1)
        centers.append(centers[-1][above] + level.center)
    return tuple(centers)


def logit_vectors(
    levels: Sequence[Level],
    hierarchy: Hierarchy,
    *,
    logits: str = "relative",
    level: int | None = None,
) -> jax.Array:
    """(size(level), d): the vectors whose products with the features are the logits of a level.

    "relative": the projection vectors; "absolute": the absolute centre plus the offset. A class
    that lies less deep than the level has its one vector in it.

    Args:
      levels: from `sphere_levels`.
      hierarchy: the tree.
      logits: "relative" or "absolute".
      level: 1..L; the leaves' if None.

    Raises:
      ValueError: inner nodes of the level store no surface vectors.
    """
    level = hierarchy.num_levels if level is None else level
    vectors = levels[level - 1].vectors
    if vectors is None or len(vectors) < len(hierarchy.members(level)):
        raise ValueError(f"level {level} stores no surface vectors, so it has no logits")
    rows, nodes = [], []
    for number in range(1 if hierarchy.class_depths else level, level + 1):
        vectors = levels[number - 1].vectors
        if vectors is not None:
            places, groups = vector_places(vectors, hierarchy, number)
            if logits == "absolute":
                vectors = absolute_centers(levels[:number], hierarchy)[-1][groups] + vectors
            rows.append(vectors)
            nodes.append(hierarchy.members(number)[places])
    if len(rows) == 1:
        return rows[0]
    place = np.empty(hierarchy.num_nodes, int)
    place[np.concatenate(nodes)] = np.arange(sum(map(len, nodes)))
    return jnp.concatenate(rows)[place[hierarchy.level_nodes(level)]]


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
    """The stored surface vectors by level; the classes' must be there."""
    last = hierarchy.num_levels
    if f"surface_{last}" not in params:
        raise ValueError(f"expected the leaves' vectors 'surface_{last}', found {_keys(params)}")
    width = jnp.shape(params[f"surface_{last}"])[-1]
    shapes = head_shapes(hierarchy, width, inner_surfaces=True)
    return {
        level: _parameter(params, f"surface_{level}", shapes[f"surface_{level}"])
        for level in range(1, last + 1)
        if f"surface_{level}" in params
    }


def _mean_centers(surfaces: dict[int, jax.Array], hierarchy: Hierarchy) -> dict[int, jax.Array]:
    leaves, inner = surfaces[hierarchy.num_levels], None
    centers: dict[int, jax.Array] = {}
    for level in range(hierarchy.num_levels, 1, -1):
        own = cast(jax.Array, member_rows(leaves, inner, hierarchy, level))
        groups = group_index(hierarchy.members(level), hierarchy, level)
        sizes = jnp.asarray(np.bincount(groups), own.dtype)
        centers[level] = jax.ops.segment_sum(own, groups, len(sizes)) / sizes[:, None]
        inner = surfaces.get(level - 1, centers[level])
    return centers


def _parameter(params: Mapping[str, ArrayLike], key: str, shape: tuple[int, ...]) -> jax.Array:
    if key not in params:
        raise ValueError(f"expected the parameter {key!r} {shape}, found {_keys(params)}")
    value = as_float(params[key])
    if value.shape != shape:
        raise ValueError(f"parameter {key!r} must have shape {shape}, found {value.shape}")
    return value


def _keys(params: Mapping[str, ArrayLike]) -> str:
    return ", ".join(params) or "no parameters"
