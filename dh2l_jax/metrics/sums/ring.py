"""The sum over all pairs of rows that lie on several devices: blocks of rows go round a ring.

Idea. Device p holds rows p·m … (p+1)·m − 1. It pairs them with those of its own, then with the
blocks of the devices p+1, p+2, … as they pass by, half way round; each block takes the gradient of
its rows along and comes home with it.
Memory. Two blocks of rows and their cotangents a device; no device ever holds all rows, nor their
gradient. A plain product of sharded rows would make XLA gather all of them everywhere.
Figure. Half way round is enough, since a pair that was met needs no second visit: devices / 2
steps, each sending one block and one cotangent.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from dh2l_jax.checks import unknown_name
from dh2l_jax.metrics.blocks import Cotangent, Rows, in_tiles
from dh2l_jax.metrics.profile import Affine, Metric
from dh2l_jax.metrics.sums.closed import with_affine
from dh2l_jax.metrics.sums.tiled import Tiled, cross_cotangents, tiled_cotangent, tiled_pull

__all__ = ["Ring"]


@dataclasses.dataclass(frozen=True)
class Ring:
    """Blocks of rows that go round the devices of one axis of a mesh.

    Attributes:
      mesh: the devices.
      axis: name of the axis.
      block: rows of a tile, at most; None for as many as suit the devices compiled for.

    Raises:
      ValueError: unknown axis, or block < 1.
    """

    mesh: Mesh
    axis: str = "data"
    block: int | None = None

    def __post_init__(self) -> None:
        Tiled(self.block)
        if self.axis not in self.mesh.axis_names:
            raise ValueError(unknown_name("axis", self.axis, self.mesh.axis_names))

    def __call__(self, metric: Metric, rows: Rows, affine: Affine) -> Cotangent:
        """Σ_{i<j} of e and of an affine form, and its gradient."""
        share = -(-len(rows.W) // self.mesh.shape[self.axis])
        rest = in_tiles(functools.partial(self._sum, metric), self.block, share, rows)
        return with_affine(metric, rows, affine, rest)

    def _sum(self, metric: Metric, block: int, rows: Rows) -> Cotangent:
        n, devices = rows.W.shape[0], self.mesh.shape[self.axis]
        share = -(-n // devices)
        padded = [jnp.pad(X, ((0, share * devices - n), *[(0, 0)] * (X.ndim - 1))) for X in rows]
        spec = PartitionSpec(self.axis)
        value, gradient = jax.shard_map(
            functools.partial(_on_one_device, metric, block, self.axis, devices),
            mesh=self.mesh,
            in_specs=(spec, spec, spec),
            out_specs=(PartitionSpec(), spec),
            # The loops start from zeros that are the same everywhere and become different.
            check_vma=False,
        )(*padded)
        return value, gradient[:n]


def _on_one_device(
    metric: Metric,
    block: int,
    axis: str,
    devices: int,
    W: jax.Array,
    r: jax.Array,
    where: jax.Array,
) -> Cotangent:
    """The sum over all devices, and the gradient of this device's rows."""
    mine = Rows(W, r, where)
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
