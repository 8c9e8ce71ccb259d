"""The ResNets of the light experiments: 6n+2 layers on small images, in Flax Linen.

Blocks are unrolled in Python: `lax.scan` over them would compile faster, but on CPU a
convolution's gradient inside a loop runs many times slower than outside.

Reference: DH²L, §5; He et al., "Deep Residual Learning for Image Recognition", 2015, §4.2.
"""

from __future__ import annotations

import difflib

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from dh2l_jax.models.layers import SHORTCUTS, BasicBlock, Conv, Network, batch_norm, check_images

__all__ = [
    "CHANNELS",
    "CifarResNet",
]

CHANNELS = (16, 32, 64)
"""Channels of the three stages; the first stage keeps the image's size, the others halve it."""

MIN_IMAGE_SIZE = 8


class Stem(nn.Module):
    """The first layer: 3×3 convolution, norm, ReLU."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (batch, height, width, cin) to (batch, height, width, 16)."""
        x = Conv(CHANNELS[0], dtype=self.dtype, name="conv")(x)
        return nn.relu(batch_norm("norm", self.dtype, train)(x))


class CifarResNet(Network):
    """ResNet-(6n+2) for small images: a stem, three stages of n blocks, mean pooling, a head.

    Parameters and logits are float32 whatever `dtype` is. Norms follow torch (momentum 0.9 here is
    0.1 there, eps 1e-5), but the running variance is the biased one.

    >>> model = CifarResNet(20, nn.Dense(10, use_bias=False))
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False)
    >>> model.apply(variables, jnp.zeros((5, 28, 28, 1)), train=False).shape
    (5, 10)

    Attributes:
      depth: 6n+2 with n ≥ 1: 8, 14, 20, …, 110.
      head: module that maps features (batch, 64) to logits; its parameters are named "head".
      shortcut: "A" (no parameters) or "B" (1×1 convolution and norm) where the shape changes.
      dtype: compute dtype of the convolutions and of the normalised activations.

    Raises:
      ValueError: depth is not 6n+2, or shortcut is neither "A" nor "B".

    Reference: DH²L, §5.
    """

    shortcut: str = "A"
    dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        if self.depth < 8 or (self.depth - 2) % 6:
            nearest = 6 * max(1, round((self.depth - 2) / 6)) + 2
            raise ValueError(f"depth must be 6n+2 with n ≥ 1, got {self.depth}; nearest: {nearest}")
        if self.shortcut not in SHORTCUTS:
            nearest = difflib.get_close_matches(str(self.shortcut).upper(), SHORTCUTS, 1, 0.0)[0]
            raise ValueError(
                f"shortcut must be one of {SHORTCUTS}, got {self.shortcut!r}; nearest: {nearest!r}"
            )
        super().__post_init__()

    @nn.compact
    def body(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images (batch, height, width, channels), ≥ 8×8, to features (batch, 64), float32."""
        check_images(images, MIN_IMAGE_SIZE)
        x = Stem(self.dtype, name="stem")(images, train=train)
        for stage, channels in enumerate(CHANNELS, 1):
            for i in range(1, (self.depth - 2) // 6 + 1):
                stride = 2 if stage > 1 and i == 1 else 1
                block = BasicBlock(
                    channels, stride, self.shortcut, self.dtype, name=f"block_{stage}_{i}"
                )
                x = block(x, train=train)
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))
