"""The convolution of the networks, and its kernel's gradient written for the CPU.

XLA computes that gradient as a convolution whose window is the whole image, behind transposes of
the image and of the incoming gradient; on CPU that is half of a train step. As a matrix product of
shifted copies it takes 0.35 to 0.65 of the time.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["convolution"]

TAPS = 3  # only kernels of 3×3 have a gradient of their own

# Images whose shifted copies fit into the second-level caches are treated at a time, but no fewer
# than MIN_IMAGES.
CHUNK_BYTES = 3 << 20
MIN_IMAGES = 8


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolves with explicit symmetric padding (k−1)/2, as torch does.

    XLA's "SAME" pads only at the far edge at stride 2, which is another network. Gradients of any
    order and `vmap` work; forward mode (`jax.jvp`) does not, as with any `custom_vjp`.

    >>> convolution(jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 4)), 2).shape
    (2, 3, 3, 4)

    Args:
      x: (batch, height, width, cin).
      kernel: (kh, kw, cin, cout), kh and kw odd.
      stride: the same in both directions.

    Returns:
      (batch, ⌈height/stride⌉, ⌈width/stride⌉, cout).

    Reference: DH²L, §5.
    """
    return _convolve(x, kernel, stride)


def _convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    padding = [((size - 1) // 2, (size - 1) // 2) for size in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, Any]:
    return _convolve(x, kernel, stride), (x, kernel)


def _backward(stride: int, residuals: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    _, x_gradient = jax.vjp(lambda x: _convolve(x, kernel, stride), x)

    def plain(x: jax.Array, g: jax.Array) -> jax.Array:
        return jax.vjp(lambda kernel: _convolve(x, kernel, stride), kernel)[1](g)[0]

    def shifted(x: jax.Array, g: jax.Array) -> jax.Array:
        images = len(x) if _several_devices() else _images_at_a_time(x, g)
        return _kernel_gradient(x, g, stride, images).astype(kernel.dtype)

    if kernel.shape[:2] != (TAPS, TAPS):
        return x_gradient(g)[0], plain(x, g)
    return x_gradient(g)[0], lax.platform_dependent(x, g, cpu=shifted, default=plain)


convolution.defvjp(_forward, _backward)


def _several_devices() -> bool:
    """Whether devices may share the batch: sums that meet inside of loops can lock each other out.

    XLA runs the loops of several layers at a time, on each device in an order of its own.
    """
    return jax.device_count() > 1


def _kernel_gradient(x: jax.Array, g: jax.Array, stride: int, images: int) -> jax.Array:
    """The gradient of a 3×3 kernel, summed over chunks of the batch.

    Args:
      x: (batch, height, width, cin).
      g: (batch, ⌈height/stride⌉, ⌈width/stride⌉, cout), the gradient of the result.
      stride: of the convolution.
      images: of a chunk.

    Returns:
      (3, 3, cin, cout), at least float32.
    """
    if len(x) % images:
        images = len(x)
    chunks = len(x) // images
    if chunks == 1:
        return _products(x, g, stride)
    x = x.reshape(images, chunks, *x.shape[1:])
    g = g.reshape(images, chunks, *g.shape[1:])

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + _products(_chunk(x, i), _chunk(g, i), stride)

    zeros = jnp.zeros((TAPS, TAPS, x.shape[-1], g.shape[-1]), jnp.promote_types(x.dtype, "float32"))
    return lax.fori_loop(0, chunks, add, zeros)


def _chunk(x: jax.Array, i: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False)


def _images_at_a_time(x: jax.Array, g: jax.Array) -> int:
    """A power of two."""
    image = TAPS * (math.prod(x.shape[1:]) + math.prod(g.shape[1:])) * x.dtype.itemsize
    return max(MIN_IMAGES, 2 ** int(math.log2(max(1, CHUNK_BYTES / image))))


def _products(x: jax.Array, g: jax.Array, stride: int) -> jax.Array:
    """The gradient as one matrix product over all pixels.

    At stride 1, x shifted by the three columns times g shifted by the three rows: each copy is 3
    times as large as its original, and the 3×3 blocks of the product are the nine taps. At other
    strides g is smaller than x and cannot be shifted in x's place: x is, by all nine.
    """
    rows, columns = g.shape[1:3]
    cin, cout = x.shape[-1], g.shape[-1]
    x = _shifts(x, 2, columns, stride)
    if stride != 1:
        blocks = _product(_shifts(x, 1, rows, stride), g)
        return blocks.reshape(TAPS, TAPS, cin, cout)
    blocks = _product(x, _shifts(g, 1, rows, 1)).reshape(TAPS, cin, TAPS, cout)
    return jnp.flip(blocks.transpose(2, 0, 1, 3), 0)  # g one row down is x one row up


def _shifts(x: jax.Array, axis: int, size: int, stride: int) -> jax.Array:
    """Its three neighbours along an axis, zeros beyond the edges, in place of every number."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (1, 1)
    x = jnp.pad(x, padding)
    end = (size - 1) * stride + 1
    slices = [lax.slice_in_dim(x, tap, tap + end, stride, axis) for tap in range(TAPS)]
    return jnp.concatenate(slices, axis=-1)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sum over the pixels of all images of outer products: (channels of a, channels of b)."""
    # As matrices: XLA is twice as slow when it sums over three axes.
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    dtype = jnp.promote_types(a.dtype, "float32")
    return jnp.matmul(a.T, b, preferred_element_type=dtype)
