"""Heads for Flax NNX: the same parameters and functions as those of the Linen heads.

Their parameters have the same names, so they go from one shell to the other as they are:
`nnx.update(head, params)` takes Linen's, `nnx.to_pure_dict(nnx.state(head, nnx.Param))` gives them.
A whole network in NNX is `nnx.bridge.ToNNX(dh2l.models.create(…), rngs=rngs)`.
"""

from __future__ import annotations

import jax
from flax import nnx

from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.models.heads import plain_init
from dh2l_jax.spheres import EPSILON, check_options, head_logits, head_shapes, vector_init

__all__ = ["HierarchicalHead", "plain_head"]


class HierarchicalHead(nnx.Module):
    """`dh2l.models.HierarchicalHead` for NNX: x · w_i on the spheres of a tree of classes.

    Args:
      hierarchy: the tree of classes.
      in_features: d.
      center: "free", "mean" or "epsilon".
      epsilon: ε.
      logits: "relative" or "absolute".
      inner_surfaces: store surface vectors of inner nodes too.
      rngs: its "params" stream draws the first vectors.

    Raises:
      ValueError: unknown `center` or `logits`.

    >>> import jax.numpy as jnp
    >>> from dh2l_jax.models import dense_kernel
    >>> tree = Hierarchy.two_level([0, 0, 1])
    >>> head = HierarchicalHead(tree, 8, rngs=nnx.Rngs(0))
    >>> head(jnp.ones((5, 8))).shape
    (5, 3)
    >>> dense_kernel(nnx.state(head, nnx.Param), tree).shape
    (8, 3)

    Reference: DH²L, Eqs. (1) and (2).
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        in_features: int,
        *,
        center: str = "free",
        epsilon: float = EPSILON,
        logits: str = "relative",
        inner_surfaces: bool = False,
        rngs: nnx.Rngs,
    ):
        check_options(center, logits)
        self.hierarchy, self.center, self.epsilon, self.logits = hierarchy, center, epsilon, logits
        shapes = head_shapes(hierarchy, in_features, center=center, inner_surfaces=inner_surfaces)
        init, self.names = vector_init(hierarchy), tuple(shapes)
        for name, shape in shapes.items():
            setattr(self, name, nnx.Param(init(rngs.params(), shape)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps features (..., d) to logits (..., C)."""
        params = {name: getattr(self, name)[...] for name in self.names}
        options = {"center": self.center, "epsilon": self.epsilon, "logits": self.logits}
        return head_logits(params, x, self.hierarchy, **options)


def plain_head(in_features: int, num_classes: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """The ResNets' plain head for NNX: bias-free, N(0, 1/d).

    >>> plain_head(8, 3, rngs=nnx.Rngs(0)).kernel.shape
    (8, 3)
    """
    return nnx.Linear(in_features, num_classes, use_bias=False, kernel_init=plain_init, rngs=rngs)
