"""The sphere head: a node at a fixed distance from its parent, in a direction that is learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.numerics import safe_normalize

__all__ = ["SphereHead"]


class SphereHead(nn.Module):
    """A classifier whose class vectors are sums of steps of fixed length down the tree.

        logits = x · w_i,   w_i = Σ_a R₀ γ^depth(a) δ_a / ‖δ_a‖,   a = i and its ancestors

    The root is at 0 and has no step. Train the directions on their unit sphere with
    `regularizers.transform.riemannian`; another optimiser moves their lengths too, which the
    logits do not see.

    Attributes:
      hierarchy: the tree of classes.
      radius: R₀.
      gamma: γ.

    >>> head = SphereHead(Hierarchy.two_level([0, 0, 1]))
    >>> params = head.init(jax.random.key(0), jnp.zeros((1, 8)))["params"]
    >>> params["direction"].shape, head.kernel(params).shape
    ((5, 8), (8, 3))

    Reference: Scieur and Kim, "Connecting Sphere Manifolds Hierarchically for Regularization",
    ICML 2021 ("+Manifold").
    """

    hierarchy: Hierarchy
    radius: float = 2.0
    gamma: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps features (..., d) to logits (..., C)."""
        shape = (self.hierarchy.num_nodes - 1, x.shape[-1])
        direction = self.param("direction", unit_init, shape)
        return jnp.dot(x, self.kernel({"direction": direction}))

    def kernel(self, params: Mapping[str, Any]) -> jax.Array:
        """(d, C): x @ kernel gives the logits. "direction" has a row δ for each node's id."""
        tree = self.hierarchy
        length = self.radius * self.gamma ** tree.node_depths()[:-1].astype(np.float32)
        steps = length[:, None] * safe_normalize(params["direction"])
        # A class of depth p stands for itself below p: it takes its own step once.
        path = tree.ancestor_nodes()
        first = np.ones(path.shape, bool)
        first[1:] = path[1:] != path[:-1]
        return jnp.sum(jnp.where(first[..., None], steps[path], 0), axis=0).T


def unit_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Rows of length 1, in any direction."""
    return safe_normalize(jax.random.normal(key, shape, dtype))
