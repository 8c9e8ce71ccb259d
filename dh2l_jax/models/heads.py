"""The hierarchical head: stores surface and centre vectors, computes logits; exports one kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dh2l_jax.checks import unknown_name
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.spheres import CENTERS, EPSILON, LOGITS, logit_vectors, sphere_levels

__all__ = ["HierarchicalHead", "dense_kernel"]


class HierarchicalHead(nn.Module):
    """A bias-free classifier whose class vectors live on the spheres of a tree of classes.

        logits = x · w_i,   w_i = w_s,i − w_c,g(i)   (or w_c^(L) + w_i, see `logits`)

    Parameters: "surface_<L>" (C, d) for the leaves; "center_<l>" (groups, d) for l = 2..L if the
    centres are free; "surface_<l>" of inner levels where something uses them. Every factor starts
    as N(0, 1/(2d)), so that w_s − w_c has variance 1/d; a flat tree has one factor, N(0, 1/d).

    Attributes:
      hierarchy: the tree of classes.
      center: "free" (trained), "mean" (of the group's surface vectors) or "epsilon" (ε · the
        parent node's projection vector).
      epsilon: ε.
      logits: "relative" (w_s − w_c) or "absolute" (the stored vectors are the offsets, the centre
        accumulated over all ancestors is added).
      inner_surfaces: store surface vectors of inner nodes too, for losses on inner levels.

    Raises:
      ValueError: unknown `center` or `logits`.

    >>> head = HierarchicalHead(Hierarchy.two_level([0, 0, 1]))
    >>> params = head.init(jax.random.key(0), jnp.zeros((1, 8)))["params"]
    >>> {name: value.shape for name, value in params.items()}
    {'surface_2': (3, 8), 'center_2': (2, 8)}

    Reference: DH²L, Eqs. (1) and (2).
    """

    hierarchy: Hierarchy
    center: str = "free"
    epsilon: float = EPSILON
    logits: str = "relative"
    inner_surfaces: bool = False

    def __post_init__(self) -> None:
        if self.center not in CENTERS:
            raise ValueError(unknown_name("center", self.center, CENTERS))
        if self.logits not in LOGITS:
            raise ValueError(unknown_name("logits", self.logits, LOGITS))
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps features (..., d) to logits (..., C)."""
        params = {
            name: self.param(name, self._init, (size, x.shape[-1]), jnp.float32)
            for name, size in self._sizes().items()
        }
        levels = sphere_levels(
            params, self.hierarchy, center=self.center, epsilon=self.epsilon, logits=self.logits
        )
        return jnp.dot(x, logit_vectors(levels, self.hierarchy, logits=self.logits).T)

    def _sizes(self) -> dict[str, int]:
        """Names and numbers of vectors of the parameters."""
        tree, last = self.hierarchy, self.hierarchy.num_levels
        inner = self.inner_surfaces or self.center == "epsilon"
        sizes = {
            f"surface_{level}": tree.size(level)
            for level in range(1, last + 1)
            if inner or level == last
        }
        if self.center == "free":
            sizes |= {f"center_{level}": tree.size(level - 1) for level in range(2, last + 1)}
        return sizes

    def _init(self, key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
        factors = 1 if self.hierarchy.num_levels == 1 else 2
        return jax.random.normal(key, shape, dtype) * (factors * shape[-1]) ** -0.5


def dense_kernel(
    params: Mapping[str, Any],
    hierarchy: Hierarchy,
    *,
    center: str | None = None,
    epsilon: float = EPSILON,
    logits: str = "relative",
) -> jax.Array:
    """The trained head as one plain bias-free Dense kernel: x @ kernel gives the same logits.

    Args:
      params: the head's parameters, or a model's with the head under "head", or all variables.
      hierarchy: the tree.
      center: as the head was made; None tells it from the parameters.
      epsilon: as the head was made.
      logits: as the head was made.

    Returns:
      (d, C).

    Raises:
      ValueError: the parameters do not fit the tree or the options.

    >>> tree = Hierarchy.two_level([0, 0, 1])
    >>> head = HierarchicalHead(tree)
    >>> params = head.init(jax.random.key(0), jnp.zeros((1, 8)))
    >>> dense_kernel(params, tree).shape
    (8, 3)
    """
    for outer in ("params", "head"):
        params = params.get(outer, params)
    levels = sphere_levels(params, hierarchy, center=center, epsilon=epsilon, logits=logits)
    return logit_vectors(levels, hierarchy, logits=logits).T
