"""Sums over all pairs through n×n similarities, value and gradient in one pass.

Idea. All similarities are there at once, so the slopes of the profile are two symmetric matrices
and the gradient is one product with each of them. Beyond `panel` rows only the similarities with
later rows are multiplied, a panel at a time: half of the products of the forward pass.
Memory. Some n×n matrices: 4 MB each at 1,024 rows, above which `Tiled` takes over.
Figure. Panels of 512 rows are the smallest whose products run at full speed on two cores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dh2l_jax.metrics.blocks import (
    Cotangent,
    Features,
    Rows,
    all_pairs,
    energy_and_slopes,
    features,
    grams,
    pull_to_rows,
    pull_to_unit,
)
from dh2l_jax.metrics.profile import Affine, Metric
from dh2l_jax.metrics.sums.closed import with_affine

__all__ = ["Dense"]


@dataclasses.dataclass(frozen=True)
class Dense:
    """All similarities at once.

    Attributes:
      panel: rows whose similarities with later rows are one product.
    """

    panel: int = 512

    def __call__(self, metric: Metric, rows: Rows, affine: Affine) -> Cotangent:
        """Σ_{i<j} of e and of an affine form, and its gradient."""
        return with_affine(metric, rows, affine, self.weighted(metric, rows, all_pairs(rows.where)))

    def weighted(self, metric: Metric, rows: Rows, weights: jax.Array) -> Cotangent:
        """Σ_{i<j} weights[i, j] e(w_i, w_j), and its gradient.

        Args:
          metric: of the pairs.
          rows: n of them.
          weights: (n, n), symmetric, 0 on the diagonal.

        >>> import dh2l_jax as dh2l
        >>> rows = Rows(jnp.eye(3), jnp.ones(3), jnp.ones(3, bool))
        >>> Dense().weighted(dh2l.get_metric("cosine"), rows, 1 - jnp.eye(3))[0].item()
        0.0
        """
        parts = features(metric, rows.W, rows.r)
        total, slopes = jnp.zeros((), rows.W.dtype), []
        for panel in self._panels(metric, parts, weights.astype(rows.W.dtype)):
            value, *panel_slopes = energy_and_slopes(metric, *panel)
            total += value
            slopes.append(panel_slopes)
        dc, dh = (_symmetric(panels) for panels in zip(*slopes, strict=True))
        # Not `pull_symmetric`: XLA fuses these products with the pull, 0.76–1.0 of the CPU time.
        dU = pull_to_unit(metric, dc, dh, parts, parts)
        return total, pull_to_rows(rows.W, rows.r, dU)

    def _panels(self, metric: Metric, parts: Features, weights: jax.Array) -> Iterator[_Panel]:
        n = weights.shape[0]
        if n <= self.panel:
            yield _Panel(*grams(metric, parts, parts), weights * 0.5)
            return
        for start in range(0, n, self.panel):
            rows = Features(*(X[start : start + self.panel] for X in parts))
            later = Features(*(X[start:] for X in parts))
            upper = jnp.triu(weights[start : start + self.panel, start:], k=1)
            yield _Panel(*grams(metric, rows, later), upper)


class _Panel(NamedTuple):
    """Similarities and weights of some rows with themselves and all later ones, (rows, later).

    Pairs i ≥ j have weight 0; where one panel holds all pairs, i < j and i > j have half of it.
    """

    c: jax.Array
    h: jax.Array
    weights: jax.Array


def _symmetric(panels: Sequence[jax.Array]) -> jax.Array:
    """T + Tᵀ, given the panels of an upper triangular T or a symmetric T as one panel."""
    if len(panels) == 1:
        return 2 * panels[0]
    n = panels[0].shape[1]
    upper = jnp.zeros((n, n), panels[0].dtype)
    for panel in panels:
        start = n - panel.shape[1]
        upper = lax.dynamic_update_slice(upper, panel, (start, start))
    return upper + upper.T
