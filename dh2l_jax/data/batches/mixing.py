"""Batches whose images are mixed in pairs: mixup and CutMix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["mix"]


def mix(
    key: Array, images: Array, *, mixup: float = 0.0, cutmix: float = 0.0
) -> tuple[Array, Array]:
    """Each image x with x', which lies as far from the batch's end as x from its start.

        mixup    s x + (1 − s) x',   s ~ Beta(α, α)
        CutMix   x, but x' in a box of height √(1 − s) h and width √(1 − s) w around a random
                 pixel, cut off at the edges; then s is the share of pixels that are left of x

    Of a batch all pairs have the same s and box, as in the papers' code.

    Args:
      key: PRNG key.
      images: (b, h, w, c) float.
      mixup: α; 0 for none, as below.
      cutmix: α; with both, a fair coin says which of them a batch gets.

    Returns:
      The images, and s: () float32, the weight of the loss of their own labels; 1 − s is that of
      the labels in reversed order.

    >>> images, s = mix(jax.random.key(0), jnp.arange(2.0).reshape(2, 1, 1, 1), mixup=1.0)
    >>> bool(jnp.allclose(images.ravel(), jnp.array([1 - s, s])))
    True

    Reference: Zhang et al., "mixup", ICLR 2018; Yun et al., "CutMix", ICCV 2019.
    """
    _, h, w, _ = images.shape
    share_key, place_key, coin_key = jax.random.split(key, 3)
    cuts = jax.random.bernoulli(coin_key) if mixup and cutmix else jnp.asarray(cutmix > 0)
    alpha = jnp.where(cuts, cutmix, mixup)
    share = jax.random.beta(share_key, alpha, alpha)
    side = jnp.array([h, w], jnp.float32)
    middle = jnp.floor(side * jax.random.uniform(place_key, (2,)))
    half = jnp.floor(side * jnp.sqrt(1 - share)) / 2
    low, high = jnp.ceil(middle - half), jnp.ceil(middle + half)
    rows = (jnp.arange(h) >= low[0]) & (jnp.arange(h) < high[0])
    columns = (jnp.arange(w) >= low[1]) & (jnp.arange(w) < high[1])
    own = jnp.where(cuts, 1.0 - (rows[:, None] & columns[None, :]), share)
    mixed = own[None, :, :, None] * images + (1 - own)[None, :, :, None] * images[::-1]
    return mixed, jnp.mean(own)
