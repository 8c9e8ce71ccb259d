"""Counting right answers at every level of the tree, exact on padded batches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dh2l_jax.hierarchy import Hierarchy

__all__ = ["level_hits"]


def level_hits(
    predictions: ArrayLike,
    labels: ArrayLike,
    hierarchy: Hierarchy,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """How many predicted classes have the label's ancestor, for each level.

    The prediction of an inner level is the ancestor of the predicted class, so the counts never
    rise from one level to the next.

    Args:
      predictions: (b,) int, predicted classes.
      labels: (b,) int, true classes.
      hierarchy: the tree.
      where: (b,) bool, the entries that count; a padded batch masks its padding.

    Returns:
      (L,) int32, levels 1..L; divide by the number of entries for the accuracy.

    Raises:
      ValueError: the shapes differ.

    >>> tree = Hierarchy.two_level([0, 0, 1])
    >>> level_hits(jnp.array([0, 1, 2]), jnp.array([0, 0, 0]), tree).tolist()
    [2, 1]

    Reference: DH²L, §4.
    """
    predictions, labels = jnp.asarray(predictions), jnp.asarray(labels)
    mask = jnp.ones(labels.shape, bool) if where is None else jnp.asarray(where)
    if not predictions.shape == labels.shape == mask.shape or labels.ndim != 1:
        raise ValueError(
            "expected predictions, labels and where of one shape (b,), found "
            f"{predictions.shape}, {labels.shape} and {mask.shape}"
        )
    ancestors = jnp.asarray(hierarchy.ancestors())
    hits = (ancestors[:, predictions] == ancestors[:, labels]) & mask[None, :]
    return jnp.sum(hits, axis=1, dtype=jnp.int32)
