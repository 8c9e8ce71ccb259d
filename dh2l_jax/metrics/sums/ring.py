"""The sum over all pairs of rows that lie on several devices: blocks of rows go round a ring.

Device p holds rows p·m … (p+1)·m − 1. It pairs them with those of its own, then with the blocks of
the devices p+1, p+2, … as they pass by, half way round; each block takes the gradient of its rows
along and comes home with it. So no device ever holds all rows, nor their gradient.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from dh2l_jax.metrics.blocks import even_block, scale_gradient
from dh2l_jax.metrics.profile import Metric
from dh2l_jax.metrics.sums.tiled import Blocks, cross_cotangents, tiled_cotangent, tiled_pull
from dh2l_jax.numerics import inverse_norm

__all__ = ["ring_sum"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def ring_sum(
    metric: Metric, block: int, mesh: Mesh, axis: str, W: jax.Array, where: jax.Array
) -> jax.Array:
    """Σ_{i<j} e(w_i, w_j) of rows split over an axis of a mesh.

    Args:
      metric: of the pairs.
      block: rows of a tile, at most.
      mesh: the devices.
      axis: name of the axis of the mesh.
      W: (n, d).
      where: (n,) bool.
    """
    return _ring_fwd(metric, block, mesh, axis, W, where)[0]


def _ring_fwd(metric: Metric, block: int, mesh: Mesh, axis: str, W: jax.Array, where: jax.Array):
    n, devices = W.shape[0], mesh.shape[axis]
    rows = -(-n // devices)
    W = jnp.pad(W, ((0, rows * devices - n), (0, 0)))
    where = jnp.pad(where, (0, rows * devices - n))
    spec = PartitionSpec(axis)
    one_device = functools.partial(_on_one_device, metric, even_block(rows, block), axis, devices)
    value, gradient = jax.shard_map(
        one_device,
        mesh=mesh,
        in_specs=(spec, spec),
        out_specs=(PartitionSpec(), spec),
        # The loops start from zeros that are the same everywhere and become different.
        check_vma=False,
    )(W, where)
    return value, gradient[:n]


def _on_one_device(
    metric: Metric, block: int, axis: str, devices: int, W: jax.Array, where: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The sum over all devices, and the gradient of this device's rows."""
    mine = Blocks(W, inverse_norm(W), where)
    value, dU = tiled_cotangent(metric, block, mine)
    half = devices // 2
    towards = [(p, (p - 1) % devices) for p in range(devices)]
    home = [(p, (p + half) % devices) for p in range(devices)]
    place = lax.axis_index(axis)

    def step(distance, carry):
        value, dU, visitor = carry
        theirs, dV = lax.ppermute(visitor, axis, towards)
        # Half way round an even ring two devices meet each other's blocks: one of them counts.
        counts = where & ((2 * distance != devices) | (place < half))
        here = mine._replace(where=counts)
        more, (dU, dV) = cross_cotangents(metric, block, here, theirs, (dU, dV))
        return value + more, dU, (theirs, dV)

    carry = value, dU, (mine, jnp.zeros_like(W))
    value, dU, (_, dV) = lax.fori_loop(1, half + 1, step, carry)
    return lax.psum(value, axis), tiled_pull(block, mine, dU + lax.ppermute(dV, axis, home))


ring_sum.defvjp(_ring_fwd, scale_gradient)
