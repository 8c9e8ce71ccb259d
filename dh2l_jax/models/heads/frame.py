"""Heads whose class vectors are fixed, by the tree or by symmetry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dh2l_jax.checks import unknown_name
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.hierarchy.learn import frames
from dh2l_jax.models.heads.plain import plain_init
from dh2l_jax.models.layers import batch_norm

__all__ = ["FRAMES", "FrameHead", "Neck"]

FRAMES = ("haframe", "etf")


class FrameHead(nn.Module):
    """A classifier that is not trained: logits = W x, W a frame of unit vectors, no parameter.

    "haframe": W Wᵀ = (1 − s) exp(−γ D/D_max) + s of the tree's heights D, the width is C. "etf":
    the simplex, W Wᵀ = −1/(C − 1) between any two classes, of width C − 1 or more.

    Features come from a `Neck`: those of a network, means after a ReLU, are never negative, so that
    half of every frame is out of their reach.

    Attributes:
      hierarchy: the tree of classes.
      kind: "haframe" or "etf".
      width: d, that of the features.
      gamma: γ of "haframe".

    Raises:
      ValueError: unknown `kind`; the frame does not fit into the width.

    >>> head = FrameHead(Hierarchy.two_level([0, 0, 1]), "etf", 8)
    >>> W = head.kernel({}).T
    >>> W.shape, round(float(W[0] @ W[1]), 4)
    ((3, 8), -0.5)

    References:
      Liang and Davis, "Inducing Neural Collapse to a Fixed Hierarchy-Aware Frame for Reducing
        Mistake Severity", ICCV 2023 (haframe).
      Yang et al., "Inducing Neural Collapse in Imbalanced Learning", NeurIPS 2022 (etf).
    """

    hierarchy: Hierarchy
    kind: str
    width: int
    gamma: float = 2.0

    def __post_init__(self) -> None:
        if self.kind not in FRAMES:
            raise ValueError(unknown_name("kind", self.kind, FRAMES))
        classes = self.hierarchy.num_classes
        if self.kind == "etf" and self.width < classes - 1:
            raise ValueError(
                f"an etf head of {classes} classes needs features of width {classes - 1} or more, "
                f"found {self.width}"
            )
        super().__post_init__()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps features (..., d) to logits (..., C)."""
        return jnp.dot(x, self.kernel({}))

    def kernel(self, params: Mapping[str, Any]) -> jax.Array:
        """(d, C): x @ kernel gives the logits; there are no parameters."""
        if self.kind == "haframe":
            return frames.haframe(self.hierarchy, gamma=self.gamma).T
        return frames.etf(self.hierarchy.num_classes, self.width).T


class Neck(nn.Module):
    """Features (batch, d) to (batch, width): a projection, a norm, two residual layers.

        x ← P x normalised;  twice x ← x + φ(norm(B φ(norm(A x)))),  φ(x) = x or slope · x below 0

    Attributes:
      width: of the result.

    Reference: Liang and Davis, ICCV 2023 (the transformation before the frame).
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (batch, d) to (batch, width), float32."""

        def layer(name: str, x: jax.Array) -> jax.Array:
            dense = nn.Dense(self.width, use_bias=False, kernel_init=plain_init, name=name)
            return dense(x)

        def norm(name: str, x: jax.Array) -> jax.Array:
            return batch_norm(f"norm_{name}", jnp.float32, train)(x)

        x = norm("0", layer("projection", x))
        for number in ("1", "2"):
            y = x
            for part in ("a", "b"):
                name = number + part
                y = norm(name, layer(f"dense_{name}", y))
                slope = self.param(f"slope_{name}", nn.initializers.constant(0.25), (self.width,))
                y = jnp.where(y < 0, slope[None] * y, y)
            x += y
        return x
