"""One plain bias-free kernel: where a plain head begins, and what a trained head comes to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import jax
from flax import linen as nn

from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.spheres import EPSILON, logit_vectors, sphere_levels

__all__ = ["dense_kernel", "plain_init"]

# N(0, 1/d), the variance of w_s − w_c in the hierarchical head.
plain_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


def dense_kernel(
    params: Mapping[str, Any],
    head: Hierarchy | nn.Module,
    *,
    center: str | None = None,
    epsilon: float = EPSILON,
    logits: str = "relative",
) -> jax.Array:
    """The trained head as one plain bias-free Dense kernel: x @ kernel gives the same logits.

    Of a `FrameHead`, x are the features after the `Neck`, if the network has one.

    Args:
      params: the head's parameters, or a model's with the head under "head", or all variables; of
        an NNX head or model its `nnx.state(…, nnx.Param)`.
      head: the head as it was made, any of `dh2l_jax.models`; or the tree of a hierarchical head.
      center: of a tree's head, as it was made; None tells it from the parameters.
      epsilon: of a tree's head, as it was made.
      logits: of a tree's head, as it was made.

    Returns:
      (d, C).

    Raises:
      ValueError: the parameters do not fit the tree or the options; the head is not linear.

    >>> import jax.numpy as jnp
    >>> tree = Hierarchy.two_level([0, 0, 1])
    >>> from dh2l_jax.models import HierarchicalHead
    >>> head = HierarchicalHead(tree)
    >>> params = head.init(jax.random.key(0), jnp.zeros((1, 8)))
    >>> dense_kernel(params, tree).shape
    (8, 3)
    """
    for outer in ("params", "head"):
        params = params.get(outer, params)
    if isinstance(head, Hierarchy):
        levels = sphere_levels(params, head, center=center, epsilon=epsilon, logits=logits)
        return logit_vectors(levels, head, logits=logits).T
    return params["kernel"] if isinstance(head, nn.Dense) else cast(Any, head).kernel(params)
