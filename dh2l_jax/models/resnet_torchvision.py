"""The ResNets of the heavy experiments: layer by layer those of torchvision, in Flax Linen.

Same weights, same outputs: the padding is torch's, and a bottleneck has its stride on the 3×3
convolution (the variant known as V1.5), not on the first 1×1 one of the original paper.

Reference: DH²L, §5; He et al., "Deep Residual Learning for Image Recognition", 2015, Table 1.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jax import lax

from dh2l_jax.checks import unknown_name
from dh2l_jax.models.layers import BasicBlock, Conv, Network, batch_norm, check_images, shortcut_b

__all__ = [
    "BLOCKS",
    "CHANNELS",
    "EXPANSION",
    "FIRST_BOTTLENECK",
    "Bottleneck",
    "TorchvisionResNet",
    "max_pool",
]

CHANNELS = (64, 128, 256, 512)
"""Channels of the four stages, before a bottleneck's expansion; all but the first stage halve."""

EXPANSION = 4
"""A bottleneck gives four times as many channels as its 3×3 convolution has."""

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Depth → blocks of each stage; from `FIRST_BOTTLENECK` on the blocks are bottlenecks."""

FIRST_BOTTLENECK = 50
MIN_IMAGE_SIZE = 32


def max_pool(x: jax.Array) -> jax.Array:
    """The largest of 3×3 numbers, at stride 2, padded by −∞ as in torch.

    Args:
      x: (batch, height, width, channels).

    Returns:
      (batch, ⌈height/2⌉, ⌈width/2⌉, channels).
    """
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)


class Stem(nn.Module):
    """The first layers: 7×7 convolution, norm, ReLU, 3×3 max-pooling; halves the size twice."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (batch, height, width, cin) to (batch, ⌈height/4⌉, ⌈width/4⌉, 64)."""
        x = Conv(CHANNELS[0], 7, 2, self.dtype, name="conv")(x)
        x = nn.relu(batch_norm("norm", self.dtype, train)(x))
        return max_pool(x)


class Bottleneck(nn.Module):
    """relu(shortcut(x) + …): 1×1, 3×3 (with the stride) and 1×1 convolution, a norm after each.

    The shortcut is the identity where the shape stays, else a 1×1 convolution and norm.

    Reference: DH²L, §5.
    """

    channels: int
    stride: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (batch, height, width, cin) to (batch, ⌈height/s⌉, ⌈width/s⌉, 4·channels)."""
        expanded = EXPANSION * self.channels
        y = Conv(self.channels, 1, dtype=self.dtype, name="conv_1")(x)
        y = nn.relu(batch_norm("norm_1", self.dtype, train)(y))
        y = Conv(self.channels, 3, self.stride, self.dtype, name="conv_2")(y)
        y = nn.relu(batch_norm("norm_2", self.dtype, train)(y))
        y = Conv(expanded, 1, dtype=self.dtype, name="conv_3")(y)
        y = batch_norm("norm_3", self.dtype, train)(y)
        if self.stride != 1 or x.shape[-1] != expanded:
            x = shortcut_b(x, expanded, self.stride, self.dtype, train)
        return nn.relu(x + y)


class TorchvisionResNet(Network):
    """ResNet-18, -34, -50 or -101: a stem, four stages of blocks, mean pooling, a head.

    Parameters and logits are float32 whatever `dtype` is. Norms follow torch (momentum 0.9 here is
    0.1 there, eps 1e-5), but the running variance is the biased one.

    >>> model = TorchvisionResNet(18, nn.Dense(10, use_bias=False))
    >>> images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    >>> init = functools.partial(model.init_with_output, train=False)
    >>> logits, variables = jax.eval_shape(init, jax.random.key(0), images)
    >>> logits.shape
    (2, 10)

    Attributes:
      depth: 18, 34, 50 or 101.
      head: module that maps features (batch, d) to logits; its parameters are named "head".
      dtype: compute dtype of the convolutions and of the normalised activations.

    Raises:
      ValueError: another depth.

    Reference: DH²L, §5.
    """

    dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        if self.depth not in BLOCKS:
            raise ValueError(unknown_name("depth", self.depth, map(str, BLOCKS)))
        super().__post_init__()

    @nn.compact
    def body(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images (batch, height, width, channels), ≥ 32×32, to features (batch, d), float32.

        d is 512 for the depths 18 and 34, 2048 for 50 and 101.
        """
        check_images(images, MIN_IMAGE_SIZE)
        deep = self.depth >= FIRST_BOTTLENECK
        make = Bottleneck if deep else functools.partial(BasicBlock, shortcut="B")
        x = Stem(self.dtype, name="stem")(images, train=train)
        for stage, channels in enumerate(CHANNELS, 1):
            for i in range(1, BLOCKS[self.depth][stage - 1] + 1):
                stride = 2 if stage > 1 and i == 1 else 1
                block = make(channels, stride, dtype=self.dtype, name=f"block_{stage}_{i}")
                x = block(x, train=train)
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))
