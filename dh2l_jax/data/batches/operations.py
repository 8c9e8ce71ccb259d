"""RandAugment by array operations: exact on bytes, without interpolation."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

__all__ = ["OPERATIONS", "randaugment"]

PER_IMAGE = 2  # operations


def randaugment(key: Array, pixels: Array, magnitude: float) -> Array:
    """Two operations for each image, drawn alike from `OPERATIONS`, of strength ±magnitude/10.

    Args:
      key: PRNG key.
      pixels: (b, h, w, c) uint8.
      magnitude: 0 to 10, static.

    >>> pixels = jnp.full((2, 4, 4, 3), 100, jnp.uint8)
    >>> randaugment(jax.random.key(0), pixels, 5).shape
    (2, 4, 4, 3)

    Reference: Cubuk et al., "RandAugment", 2020, without equalising and sharpening.
    """
    which_key, sign_key = jax.random.split(key)
    shape = (PER_IMAGE, len(pixels))
    which = jax.random.randint(which_key, shape, 0, len(OPERATIONS))
    strength = magnitude / 10 * jax.random.rademacher(sign_key, shape, jnp.float32)
    apply = jax.vmap(lambda i, x, a: jax.lax.switch(i, tuple(OPERATIONS.values()), x, a))
    x = pixels.astype(jnp.float32)
    for i, a in zip(which, strength, strict=True):
        x = jnp.clip(jnp.round(apply(i, x, a)), 0, 255)
    return x.astype(pixels.dtype)


def _autocontrast(x: Array, a: Array) -> Array:
    low, high = (of(x, axis=(0, 1), keepdims=True) for of in (jnp.min, jnp.max))
    return jnp.where(high > low, (x - low) * (255 / jnp.maximum(high - low, 1)), x)


def _grey(x: Array) -> Array:
    """(h, w, 1), as television weighs red, green and blue."""
    weights = jnp.array([0.299, 0.587, 0.114]) if x.shape[-1] == 3 else jnp.ones(x.shape[-1])
    return jnp.sum(x * (weights / jnp.sum(weights))[None, None], axis=-1, keepdims=True)


def _moved(x: Array, rows: tuple[ArrayLike, ...], columns: tuple[ArrayLike, ...]) -> Array:
    """The nearest pixel of the place that each pixel comes from; 0 where that is outside.

    A place, counted from the middle, is (factor of the row, factor of the column, shift) of each.
    """
    h, w, _ = x.shape
    r, c = np.arange(h)[:, None] - (h - 1) / 2, np.arange(w)[None, :] - (w - 1) / 2
    row = jnp.round(rows[0] * r + rows[1] * c + rows[2] + (h - 1) / 2).astype(jnp.int32)
    column = jnp.round(columns[0] * r + columns[1] * c + columns[2] + (w - 1) / 2).astype(jnp.int32)
    inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
    return jnp.where(inside[..., None], x[row.clip(0, h - 1), column.clip(0, w - 1)], 0)


def _rotated(x: Array, a: Array) -> Array:
    cos, sin = jnp.cos(math.pi / 6 * a), jnp.sin(math.pi / 6 * a)
    return _moved(x, (cos, sin, 0), (-sin, cos, 0))


OPERATIONS: dict[str, Callable[[Array, Array], Array]] = {
    "identity": lambda x, a: x,
    "autocontrast": _autocontrast,
    "brightness": lambda x, a: (1 + 0.9 * a) * x,
    "contrast": lambda x, a: jnp.mean(_grey(x)) + (1 + 0.9 * a) * (x - jnp.mean(_grey(x))),
    "colour": lambda x, a: _grey(x) + (1 + 0.9 * a) * (x - _grey(x)),
    "posterize": lambda x, a: x - x % 2.0 ** jnp.round(4 * jnp.abs(a)),
    "solarize": lambda x, a: jnp.where(x >= 256 * (1 - jnp.abs(a)), 255 - x, x),
    "translate_x": lambda x, a: _moved(x, (1, 0, 0), (0, 1, jnp.round(0.3 * a * x.shape[1]))),
    "translate_y": lambda x, a: _moved(x, (1, 0, jnp.round(0.3 * a * x.shape[0])), (0, 1, 0)),
    "shear_x": lambda x, a: _moved(x, (1, 0, 0), (0.3 * a, 1, 0)),
    "shear_y": lambda x, a: _moved(x, (1, 0.3 * a, 0), (0, 1, 0)),
    "rotate": _rotated,
}
"""Of an image (h, w, c) with values 0 to 255 and a strength −1 to 1; the result may lie beyond."""
