"""Where the arrays of a step lie, in one process or several: whole on each device, or split."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from dh2l_jax.data.store.images import Images, channels, pixel_rows, sizes

__all__ = ["gather_pixels", "join_rows", "own_copy", "own_rows", "place"]


def place(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Values that are alike in all processes, put on the devices; no process waits for another.

    Args:
      tree: arrays of NumPy, or of this process' default device.
      sharding: over the devices of all processes.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(values: Any) -> jax.Array:
        # `device_put` would compare the values of all processes, and wait for them.
        if isinstance(values, jax.Array):
            return _placed(sharding)(values)
        values = np.asarray(values)
        return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)

    return jax.tree.map(put, tree)


@functools.cache
def _placed(sharding: jax.sharding.Sharding):
    return jax.jit(lambda values: values, out_shardings=sharding)


def own_copy(values: jax.Array) -> jax.Array:
    """Replicated values as an array of this process alone."""
    return values.addressable_data(0) if jax.process_count() > 1 else values


def own_rows(sharding: NamedSharding, size: int) -> np.ndarray:
    """The rows of a batch of `size` rows that lie on this process' devices, ascending."""
    parts = sharding.addressable_devices_indices_map((size,)).values()
    return np.unique([np.arange(size)[part] for part in parts])


def join_rows(tree: Any, sharding: NamedSharding, size: int) -> Any:
    """The batch of `size` rows of which each process holds its `own_rows`."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def join(rows: np.ndarray) -> jax.Array:
        shape = (size, *rows.shape[1:])
        return jax.make_array_from_process_local_data(sharding, rows, shape)

    return jax.tree.map(join, tree)


def gather_pixels(images: Images, split: NamedSharding, whole: NamedSharding) -> jax.Array:
    """The (p, c) pixels of all images, whole on each device; each process reads its own share.

    Args:
      images: alike in all processes.
      split: the rows that each device's process reads.
      whole: what the devices make of them, by an exchange.
    """
    count = int(sizes(images).astype(np.int64).prod(axis=1).sum())
    devices = split.num_devices
    shape = (-(-count // devices) * devices, channels(images))

    def read(index: Any) -> np.ndarray:
        first, last, _ = index[0].indices(shape[0])
        return pixel_rows(images, first, last)

    parts = jax.make_array_from_callback(shape, split, read)
    return jax.jit(lambda pixels: pixels[:count], out_shardings=whole)(parts)
