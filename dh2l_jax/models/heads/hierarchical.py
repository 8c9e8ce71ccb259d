"""The hierarchical head: stores surface and centre vectors, computes logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.spheres import (
    EPSILON,
    check_options,
    head_logits,
    head_shapes,
    logit_vectors,
    sphere_levels,
    vector_init,
)

__all__ = ["HierarchicalHead"]


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

    >>> import jax.numpy as jnp
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
        check_options(self.center, self.logits)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps features (..., d) to logits (..., C)."""
        tree, init = self.hierarchy, vector_init(self.hierarchy)
        shapes = head_shapes(
            tree, x.shape[-1], center=self.center, inner_surfaces=self.inner_surfaces
        )
        params = {name: self.param(name, init, shape) for name, shape in shapes.items()}
        return head_logits(
            params, x, tree, center=self.center, epsilon=self.epsilon, logits=self.logits
        )

    def kernel(self, params: Mapping[str, Any]) -> jax.Array:
        """(d, C): x @ kernel gives the logits."""
        options = {"center": self.center, "epsilon": self.epsilon, "logits": self.logits}
        levels = sphere_levels(params, self.hierarchy, **options)
        return logit_vectors(levels, self.hierarchy, logits=self.logits).T
