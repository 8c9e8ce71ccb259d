"""The head of the losses that want a logit of every node of the tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dh2l_jax.checks import unknown_name
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.hierarchy.learn.decoding import conditional_log_probs
from dh2l_jax.hierarchy.learn.nodes import down, rows_of_nodes
from dh2l_jax.models.heads.plain import plain_init

__all__ = ["NodeHead"]

KINDS = ("conditional", "hrn")


class NodeHead(nn.Module):
    """A vector a node; the logits of the classes are the log-probabilities of their paths.

        conditional: log p_i = Σ_a log q(a | parent),  q = soft-max of x · w_a among siblings
        hrn:         log p_i = Σ_a x · w_a + const,     a = i and its ancestors

    Attributes:
      hierarchy: the tree of classes.
      kind: "conditional" or "hrn", the loss that trains it.

    Raises:
      ValueError: unknown `kind`.

    >>> head = NodeHead(Hierarchy.two_level([0, 0, 1]))
    >>> params = head.init(jax.random.key(0), jnp.zeros((1, 8)))["params"]
    >>> params["kernel"].shape, [z.shape for z in head.nodes(params, jnp.ones((4, 8)))]
    ((8, 5), [(4, 2), (4, 3)])
    >>> logits = head.apply({"params": params}, jnp.ones((4, 8)))
    >>> logits.shape, round(float(jnp.exp(logits[0]).sum()), 5)
    ((4, 3), 1.0)

    References:
      Redmon and Farhadi, "YOLO9000", CVPR 2017 (conditional).
      Chen et al., "Label Relation Graphs Enhanced Hierarchical Residual Network", CVPR 2022 (hrn).
    """

    hierarchy: Hierarchy
    kind: str = "conditional"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(unknown_name("kind", self.kind, KINDS))
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps features (b, d) to logits (b, C)."""
        shape = (x.shape[-1], self.hierarchy.num_nodes - 1)
        kernel = self.param("kernel", plain_init, shape)
        return self.leaves(self.nodes({"kernel": kernel}, x))

    def nodes(self, params: Mapping[str, Any], x: jax.Array) -> list[jax.Array]:
        """Features (b, d) to the logits (b, size(l)) of the nodes of levels l = 1..L.

        The columns of "kernel" are the nodes by their ids: the classes first.
        """
        logits, tree = jnp.dot(x, params["kernel"]), self.hierarchy
        return [logits[:, tree.level_nodes(level)] for level in range(1, tree.num_levels + 1)]

    def kernel(self, params: Mapping[str, Any]) -> jax.Array:
        """(d, C): x @ kernel gives the logits.

        Raises:
          ValueError: the logits are those of a conditional soft-max, which is not linear.
        """
        if self.kind != "hrn":
            raise ValueError(
                "the logits of a conditional soft-max are not linear in the features: no plain "
                "kernel gives them"
            )
        return self.leaves(self.nodes(params, jnp.eye(len(params["kernel"]))))

    def leaves(self, nodes: Sequence[jax.Array]) -> jax.Array:
        """Log-probabilities (b, C) of the classes, of "hrn" up to a constant an image."""
        if self.kind == "conditional":
            return conditional_log_probs(nodes, self.hierarchy)
        rows = down(rows_of_nodes(nodes, self.hierarchy), self.hierarchy)
        return rows[: self.hierarchy.num_classes].T
