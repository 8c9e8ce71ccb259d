"""Blocks of rows: their similarities, a profile with its slopes, and the way back to the rows.

Idea. Every profile lives on two Gram matrices, U Uᵀ of unit vectors and S Sᵀ of their codes. Its
slopes are symmetric in the pair, so the gradient is one product per Gram matrix, dc U + dh S / d,
formed while the similarities are at hand: autodiff would keep them on a tape and multiply twice.
Memory. No sum builds an n×n×d tensor, as vmap of a pair function does (1.25 GB for 200 × 2,048).
Figure. Value and gradient of d_cos_hm take 0.38–0.52 of what PyTorch's autograd takes for the same
products, 0.53–0.89 where JAX differentiates the two Gram matrices by itself.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from dh2l_jax.metrics.bits import code_products, times_codes
from dh2l_jax.metrics.profile import PRECISIONS, Affine, Metric, is_steep, similarities_used
from dh2l_jax.metrics.similarity import code_length, encode
from dh2l_jax.numerics import sign_through, snap

__all__ = [
    "Cotangent",
    "Features",
    "Rows",
    "Start",
    "add_rows",
    "all_pairs",
    "block_of",
    "by_platform",
    "energies_and_slopes",
    "energy_and_slopes",
    "even_block",
    "features",
    "gpu_groups",
    "grams",
    "in_chunks",
    "in_tiles",
    "off_diagonal",
    "over_blocks",
    "pair_count",
    "pairs_in_step",
    "product",
    "pull_codes",
    "pull_from_unit",
    "pull_symmetric",
    "pull_to_rows",
    "pull_to_unit",
    "row_codes",
    "tile_rows",
    "unit_slopes",
    "write_rows",
]

T = TypeVar("T")
Start = jax.Array | int
Cotangent = tuple[jax.Array, jax.Array]  # of a sum: its value, and the gradient of its rows W


def pair_count(where: jax.Array, dtype: DTypeLike, *, half_space: bool = False) -> jax.Array:
    """Number of pairs i < j of the rows of an (n,) mask; with `half_space`, of the rows W ∪ −W."""
    n = jnp.sum(where, dtype=dtype) * (2 if half_space else 1)
    return n * (n - 1) / 2


def all_pairs(where: jax.Array) -> jax.Array:
    """(n, n) bool: i ≠ j, both present."""
    return where[:, None] & where[None, :] & off_diagonal(where.shape[0])


def off_diagonal(n: int) -> jax.Array:
    """(n, n) bool: i ≠ j."""
    return ~jnp.eye(n, dtype=bool)


# Similarities, and the profile with its slopes.


class Rows(NamedTuple):
    """The rows of a sum, their norms measured once, at the door.

    Attributes:
      W: (n, d), 0 where a row takes no part.
      r: (n,) their inverse norms; 0 for a zero row.
      where: (n,) bool, the rows that take part.
    """

    W: jax.Array
    r: jax.Array
    where: jax.Array


class Features(NamedTuple):
    """Unit vectors U and their codes S, both (rows, d)."""

    U: jax.Array
    S: jax.Array


def features(metric: Metric, W: jax.Array, r: jax.Array) -> Features:
    """Of rows W, (rows, d), with the inverse norms r, (rows,)."""
    U = r[:, None] * W
    return Features(U, encode(U, metric.code, metric.threshold))


def grams(metric: Metric, left: Features, right: Features) -> tuple[jax.Array, jax.Array]:
    """(c, h), both (m, n), of the m rows of `left` with the n rows of `right`.

    >>> import dh2l_jax as dh2l
    >>> metric = dh2l.get_metric("d_am")
    >>> parts = features(metric, jnp.array([[3.0, 0.0], [0.0, -2.0]]), jnp.array([1 / 3, 1 / 2]))
    >>> [X.tolist() for X in grams(metric, parts, parts)]
    [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]]
    """
    if metric.threshold:
        h = product(left.S, right.S.T)
    else:
        h = code_products(left.S, right.S, metric.code)
    steep = metric.precision != "highest" and is_steep(metric.energy)
    c = product(left.U, right.U.T, "highest" if steep else metric.precision)
    return c, snap(h / code_length(left.U.shape[1], metric.threshold))


def row_codes(metric: Metric, W: jax.Array, r: jax.Array) -> jax.Array:
    """Codes of unit vectors r·w, with their slopes, but read off W, which is at hand.

    Without a dead zone the length of a vector does not change its code.
    """
    return sign_through(r[:, None] * W, encode(W, metric.code))


def unit_slopes(metric: Metric, affine: Affine, d: int) -> tuple[float, float]:
    """Slopes of a c + b h in the products of unit vectors and of codes."""
    return affine[0], affine[1] / code_length(d, metric.threshold)


def pull_codes(metric: Metric, U: jax.Array, dS: jax.Array) -> jax.Array:
    """The cotangent of unit vectors, given that of their codes."""
    if not metric.threshold:
        return dS  # the estimator passes all of it: no entry of a unit vector is beyond ±1
    code = functools.partial(encode, code=metric.code, threshold=metric.threshold)
    return jax.vjp(code, U)[1](dS)[0]


def pairs_in_step(metric: Metric, left: Features, right: Features) -> tuple[jax.Array, jax.Array]:
    """(c, h), both (n,), of row i of `left` with row i of `right`."""
    dot = jax.vmap(functools.partial(jnp.dot, precision=lax.Precision.HIGHEST))
    h = dot(left.S, right.S) / code_length(left.U.shape[1], metric.threshold)
    return dot(left.U, right.U), snap(h)


def product(a: jax.Array, b: jax.Array, precision: str = "highest") -> jax.Array:
    """a b, in full float32 unless asked: accelerators' default would round c to a few digits."""
    exact = a.dtype != jnp.float32
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST if exact else PRECISIONS[precision])


def energy_and_slopes(
    metric: Metric, c: jax.Array, h: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Σ weights·e, and weights·∂e/∂c, weights·∂e/∂h; entries of weight 0 are never looked at."""
    e, dc, dh = energies_and_slopes(metric, c, h, weights)
    return jnp.sum(e), dc, dh


def energies_and_slopes(
    metric: Metric, c: jax.Array, h: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `energy_and_slopes`, with weights·e of each pair."""
    e, pull = jax.vjp(metric.energy, c, h)
    used = weights != 0
    slopes = pull(jnp.ones_like(e))
    e, dc, dh = (jnp.where(used, weights * x, 0) for x in (e, *slopes))
    return e, dc, dh


def pull_to_unit(
    metric: Metric, dc: jax.Array, dh: jax.Array, rows: Features, other: Features
) -> jax.Array:
    """The cotangent of `rows.U`, (m, d), given the slopes (m, n) against the rows of `other`."""
    uses = similarities_used(metric.energy)
    dU = product(dc, other.U, metric.precision) if uses.c else jnp.zeros_like(rows.U)
    if not uses.h:
        return dU
    times = product if metric.threshold else times_codes
    dS = times(dh / code_length(rows.U.shape[1], metric.threshold), other.S)
    return dU + pull_codes(metric, rows.U, dS)


def pull_symmetric(metric: Metric, dc: jax.Array, dh: jax.Array, rows: Features) -> jax.Array:
    """As `pull_to_unit`, given the slopes of rows against themselves, dc and dh symmetric.

    XLA does not fuse products of transposed matrices with what follows, which takes CPUs longer.
    """
    return pull_to_unit(metric, dc.T, dh.T, rows, rows)


def pull_to_rows(W: jax.Array, r: jax.Array, dU: jax.Array) -> jax.Array:
    """The cotangent of rows W with inverse norms r, given that of their unit vectors.

    r (I − u uᵀ) dU,   u = r w
    """
    return pull_from_unit(r[..., None] * W, r, dU)


def pull_from_unit(U: jax.Array, r: jax.Array, dU: jax.Array) -> jax.Array:
    """As `pull_to_rows`, given the unit vectors."""
    return r[..., None] * (dU - U * jnp.sum(U * dU, axis=-1, keepdims=True))


# Loops over blocks of rows.

# A GPU has a launch for each operation of a tile, so its tiles are larger, as far as temporaries
# allow; a TPU has none, and takes three times as long to compile larger ones.
BLOCK = 640  # rows of a tile
GPU_BLOCK = 2048
GPU_NUMBERS = 7 * 2**18  # of such rows: 7 MB


def by_platform(fn: Callable[..., T], elsewhere: int, on_gpu: int, *args: Any) -> T:
    """fn(size, *args), the size being that of the device which is compiled for."""
    if elsewhere == on_gpu or not gpu_plugin():
        return fn(elsewhere, *args)
    gpu = functools.partial(fn, on_gpu)
    return lax.platform_dependent(
        *args, cuda=gpu, rocm=gpu, default=functools.partial(fn, elsewhere)
    )


@functools.cache
def gpu_plugin() -> bool:
    """Whether JAX can compile for a GPU here: else nothing is traced a second time for one."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return any("cuda" in plugin.name or "rocm" in plugin.name for plugin in plugins)


def in_tiles(fn: Callable[..., T], block: int | None, n: int, rows: Rows) -> T:
    """fn(rows of a block, rows), n rows making blocks of one size of at most `block` or by device.

    >>> rows = Rows(jnp.ones((2_000, 512)), jnp.ones(2_000), jnp.ones(2_000, bool))
    >>> in_tiles(lambda block, rows: jnp.asarray(block), None, 2_000, rows).item()  # on CPU
    500
    """
    sizes = (even_block(n, size) for size in tile_rows(block, rows.W.shape[1]))
    return by_platform(fn, *sizes, rows)


def gpu_groups(rows: int, d: int) -> int:
    """How many groups of so many rows a GPU takes at once: 14 MB of rows, 8 MB of pairs.

    >>> gpu_groups(128, 512), gpu_groups(2_000, 512)
    (56, 1)
    """
    return max(1, min(2 * GPU_NUMBERS // (rows * max(d, 1)), 2**21 // rows**2))


def in_chunks(index: jax.Array, size: int, fill: int) -> jax.Array:
    """(n, ...) → (chunks, size or less, ...), filled up at the end.

    >>> in_chunks(jnp.arange(5), 3, -1).tolist()
    [[0, 1, 2], [3, 4, -1]]
    """
    size = even_block(len(index), size)
    ends = ((0, -len(index) % size), *((0, 0),) * (index.ndim - 1))
    return jnp.pad(index, ends, constant_values=fill).reshape(-1, size, *index.shape[1:])


def tile_rows(block: int | None, d: int) -> tuple[int, int]:
    """Rows of a tile at most: on CPU and TPU, and on GPU.

    >>> tile_rows(None, 512), tile_rows(None, 2048), tile_rows(100, 512)
    ((640, 2048), (640, 896), (100, 100))
    """
    if block is not None:
        return block, block
    return BLOCK, max(BLOCK, min(GPU_BLOCK, GPU_NUMBERS // max(d, 1)))


def over_blocks(step: Callable[..., T], carry: T, n: int, block: int) -> T:
    """Folds step(carry, start, own) over blocks of n rows.

    A ragged last block starts early instead of being padded; `own`, (block,) bool, leaves out the
    rows that it shares with the block before.
    """
    if n <= block:
        return step(carry, 0, jnp.ones(n, bool))
    return lax.fori_loop(
        0, -(-n // block), lambda i, carry: step(carry, *block_of(n, block, i)), carry
    )


def even_block(n: int, block: int) -> int:
    """Rows of a block such that n rows make as many blocks as with `block`, of one size.

    >>> even_block(1025, 512)
    342
    """
    return -(-n // -(-n // block))


def block_of(n: int, block: int, i: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First row of block i of n rows, and which of its rows are its own."""
    start = jnp.minimum(i * block, n - block)
    return start, start + jnp.arange(block) >= i * block


def write_rows(target: jax.Array, start: Start, own: jax.Array, rows: jax.Array) -> jax.Array:
    """The target with its own rows of a block in place of those that it had."""
    old = lax.dynamic_slice_in_dim(target, start, own.shape[0])
    return lax.dynamic_update_slice_in_dim(target, jnp.where(own[:, None], rows, old), start, 0)


def add_rows(target: jax.Array, start: Start, rows: jax.Array) -> jax.Array:
    """The target with a block added."""
    old = lax.dynamic_slice_in_dim(target, start, rows.shape[0])
    return lax.dynamic_update_slice_in_dim(target, old + rows, start, 0)
