"""What both families of networks share: convolutions, normalisation, shortcuts, the basic block."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from dh2l_jax.models.convolution import convolution

__all__ = [
    "BasicBlock",
    "Conv",
    "Network",
    "batch_norm",
    "check_images",
    "outputs_in_training",
    "shortcut_a",
    "shortcut_b",
]


SHORTCUTS = ("A", "B")


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
      neck: module that maps the body's features to those of the head; None leaves them.
    """

    depth: int
    head: nn.Module
    neck: nn.Module | None = dataclasses.field(default=None, kw_only=True)

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images (batch, height, width, channels) to logits (batch, classes), float32.

        With `train` the norms use and update the batch's statistics: pass
        `mutable=["batch_stats"]` to `apply`.
        """
        return self.head(self.features(images, train)).astype(jnp.float32)

    def features(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images (batch, height, width, channels) to features (batch, d), float32."""
        x = self.body(images, train)
        return x if self.neck is None else self.neck(x, train=train)

    def body(self, images: jax.Array, train: bool) -> jax.Array:
        """As `features`, before the neck."""
        raise NotImplementedError


def outputs_in_training(
    model: nn.Module, variables: Any, images: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, Any]:
    """Features (batch, d), logits (batch, classes) and the new statistics of BatchNorm.

    Of a network that is no `Network` the features are what its head is called with.

    Args:
      model: with the field `head`.
      variables: {"params": …, "batch_stats": …}.
      images: (batch, height, width, channels).
      key: of the dropout of a network that is no `Network`.

    Raises:
      ValueError: the network does not call its head once.
    """
    if isinstance(model, Network):
        features, updates = model.apply(
            variables, images, True, method=model.features, mutable=["batch_stats"]
        )
        params = {"params": variables["params"]}
        logits = model.apply(params, features, method=lambda module, x: module.head(x))
    else:
        (features, logits), updates = model.apply(
            variables,
            images,
            method=_features_and_logits,
            mutable=["batch_stats"],
            rngs=None if key is None else {"dropout": key},
        )
    statistics = cast(dict, updates).get("batch_stats", variables["batch_stats"])
    return cast(jax.Array, features), cast(jax.Array, logits), statistics


def _features_and_logits(module: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    found = []

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.module.path == ("head",) and context.method_name == "__call__":
            found.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        logits = module(images, train=True)
    if len(found) != 1:
        raise ValueError(
            f"{type(module).__name__} calls its head {len(found)} times: expected once, and its "
            "logits as the result"
        )
    return found[0], logits.astype(jnp.float32)
