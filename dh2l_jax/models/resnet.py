"""The ResNets of the light experiments: 6n+2 layers on small images, in Flax Linen.

Every convolution goes through `convolution`, looked up here at call time. Blocks are unrolled in
Python: `lax.scan` over them would compile faster, but on CPU a convolution's gradient inside a loop
runs many times slower than outside.

Reference: DH²L, §5; He et al., "Deep Residual Learning for Image Recognition", 2015, §4.2.
"""

from __future__ import annotations

import difflib

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from dh2l_jax.models.convolutions import convolution

__all__ = [
    "CHANNELS",
    "BasicBlock",
    "CifarResNet",
    "Conv",
    "Network",
    "batch_norm",
    "check_images",
    "convolution",
    "shortcut_a",
    "shortcut_b",
]

CHANNELS = (16, 32, 64)
"""Channels of the three stages; the first stage keeps the image's size, the others halve it."""

SHORTCUTS = ("A", "B")
MIN_IMAGE_SIZE = 8

# He normal: variance 2 / (kh·kw·cout), torchvision's kaiming_normal_(mode="fan_out").
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def shortcut_a(x: jax.Array, channels: int, stride: int) -> jax.Array:
    """Shortcut without parameters: every stride-th pixel, zeros for the channels that are new.

    Args:
      x: (batch, height, width, cin) with cin ≤ channels.
      channels: channels of the result; the zeros come after the cin given ones.
      stride: the same in both directions.

    Returns:
      (batch, ⌈height/stride⌉, ⌈width/stride⌉, channels).

    Reference: DH²L, §5 (option A of He et al.).
    """
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, channels - x.shape[-1])))


class Conv(nn.Module):
    """A square convolution without bias: `kernel` (size, size, cin, channels), always float32."""

    channels: int
    size: int = 3
    stride: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, cin) to (batch, ⌈height/s⌉, ⌈width/s⌉, channels)."""
        shape = (self.size, self.size, x.shape[-1], self.channels)
        kernel = self.param("kernel", he_normal_fan_out, shape, jnp.float32)
        return convolution(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)


def batch_norm(name: str, dtype: Dtype, train: bool) -> nn.BatchNorm:
    """BatchNorm whose statistics are reduced and kept in float32 whatever the compute dtype."""
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name
    )


def shortcut_b(x: jax.Array, channels: int, stride: int, dtype: Dtype, train: bool) -> jax.Array:
    """Shortcut with parameters, of the block that calls it: 1×1 convolution and norm.

    Args:
      x: (batch, height, width, cin).
      channels: channels of the result.
      stride: the same in both directions.
      dtype: compute dtype.
      train: use and update the batch's statistics.

    Returns:
      (batch, ⌈height/stride⌉, ⌈width/stride⌉, channels).

    Reference: DH²L, §5 (option B of He et al.).
    """
    x = Conv(channels, 1, stride, dtype, name="conv_shortcut")(x)
    return batch_norm("norm_shortcut", dtype, train)(x)


def check_images(images: jax.Array, smallest: int) -> None:
    """Raises ValueError unless images are (batch, height, width, channels), ≥ smallest²."""
    if images.ndim != 4 or min(images.shape[1:3]) < smallest:
        raise ValueError(
            "images must have shape (batch, height, width, channels) with height and width "
            f"≥ {smallest}, got {images.shape}"
        )


class Stem(nn.Module):
    """The first layer: 3×3 convolution, norm, ReLU."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (batch, height, width, cin) to (batch, height, width, 16)."""
        x = Conv(CHANNELS[0], dtype=self.dtype, name="conv")(x)
        return nn.relu(batch_norm("norm", self.dtype, train)(x))


class BasicBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))), two 3×3 convolutions.

    The shortcut is the identity where the shape stays; else option A (`shortcut_a`) or option B
    (1×1 convolution and norm).

    Reference: DH²L, §5.
    """

    channels: int
    stride: int = 1
    shortcut: str = "A"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (batch, height, width, cin) to (batch, ⌈height/s⌉, ⌈width/s⌉, channels)."""
        y = Conv(self.channels, stride=self.stride, dtype=self.dtype, name="conv_1")(x)
        y = nn.relu(batch_norm("norm_1", self.dtype, train)(y))
        y = Conv(self.channels, dtype=self.dtype, name="conv_2")(y)
        y = batch_norm("norm_2", self.dtype, train)(y)
        if self.stride != 1 or x.shape[-1] != self.channels:
            if self.shortcut == "A":
                x = shortcut_a(x, self.channels, self.stride)
            else:
                x = shortcut_b(x, self.channels, self.stride, self.dtype, train)
        return nn.relu(x + y)


class Network(nn.Module):
    """A network that ends in a head; `features` is its own.

    Attributes:
      depth: number of layers.
      head: module that maps features (batch, d) to logits.
    """

    depth: int
    head: nn.Module

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images (batch, height, width, channels) to logits (batch, classes), float32.

        With `train` the norms use and update the batch's statistics: pass
        `mutable=["batch_stats"]` to `apply`.
        """
        return self.head(self.features(images, train)).astype(jnp.float32)

    def features(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images (batch, height, width, channels) to features (batch, d), float32."""
        raise NotImplementedError


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
    def features(self, images: jax.Array, train: bool) -> jax.Array:
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
