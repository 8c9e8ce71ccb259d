"""A params tree → named (fan_out, fan_in) matrices by patterns on the path, and their energy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp

from dh2l_jax.checks import unknown_name
from dh2l_jax.metrics import MetricLike, get_metric
from dh2l_jax.regularizers.params.axes import Axes, parse
from dh2l_jax.regularizers.params.layouts.models import known_leaves
from dh2l_jax.regularizers.params.layouts.names import ask
from dh2l_jax.regularizers.params.plan import seen, sum_of_stacks
from dh2l_jax.regularizers.params.rules import Rule, as_regularizer
from dh2l_jax.regularizers.table import Regularizer

__all__ = ["kernel_matrices", "weight_energy"]

Patterns = str | Sequence[str]


def kernel_matrices(
    params: object, include: Patterns = r"(^|/)kernel$", exclude: Patterns = ()
) -> dict[str, jax.Array]:
    """The weight vectors of every layer: path → (fan_out, fan_in), in the order of the tree.

    A convolution kernel (kh, kw, cin, cout) gives cout vectors of kh·kw·cin, a dense kernel
    (in, out) gives out vectors of in. Biases and normalisations never take part. What can be read
    in several ways is for `dh2l.plan`, which takes rules; scanned layers and grouped convolutions
    of a module of NNX or Equinox are batches (..., fan_out, fan_in).

    Args:
      params: any pytree of arrays, or a module of Flax NNX or Equinox.
      include: regular expressions, searched for in the path ("block_1_1/conv_1/kernel").
      exclude: regular expressions of paths to leave out.

    Raises:
      ValueError: a pattern matches no leaf (the nearest path is named), or a leaf can be read in
        several ways.

    >>> params = {"conv": {"kernel": jnp.ones((3, 3, 8, 16)), "bias": jnp.ones(16)}}
    >>> {path: matrix.shape for path, matrix in kernel_matrices(params).items()}
    {'conv/kernel': (16, 72)}

    Reference: DH²L, §3.1 (E of a layer).
    """
    layers = _layers(params, include, exclude)
    return {path: axes.vectors(leaf) for path, (axes, leaf) in layers.items()}


def _layers(
    params: object, include: Patterns, exclude: Patterns
) -> dict[str, tuple[Axes, jax.Array]]:
    """Path → how it is read, and the array."""
    leaves = {k: leaf for k, leaf in known_leaves(params).items() if not leaf.known.left_out}
    chosen = _matching(leaves, include) - _matching(leaves, exclude)
    rule = Rule("", get_metric("d_am_cos"))
    unclear = [(k, leaves[k].array.shape, rule) for k in sorted(chosen) if not leaves[k].known.axes]
    if unclear:
        raise ask(unclear)
    return {
        path: (parse(leaf.known.axes or ""), jnp.asarray(leaf.array))
        for path, leaf in leaves.items()
        if path in chosen
    }


def _matching(paths: Iterable[str], patterns: Patterns) -> set[str]:
    found = set()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        hits = {path for path in paths if re.search(pattern, path)}
        if not hits:
            raise ValueError(unknown_name("path pattern", pattern, paths))
        found |= hits
    return found


def weight_energy(
    params: object,
    metric: MetricLike | Regularizer,
    *,
    include: Patterns = r"(^|/)kernel$",
    exclude: Patterns = (),
    method: str = "auto",
    half_space: bool = False,
) -> jax.Array:
    """R_E: sum over layers of the mean energy of the layer's weight vectors, or a regulariser's.

        Σ_layers 2/(n(n−1)) Σ_{i<j} e(w_i, w_j)

    Small kernels share one program.

    Args:
      params: any pytree; see `kernel_matrices` for what counts as a layer.
      metric: a name that `dh2l.regularizer` takes, what that returns, a `Metric` or a profile
        f(c, h).
      include: regular expressions of the paths to use.
      exclude: regular expressions of the paths to leave out.
      method: as in `mean_energy`, of what is a mean over pairs.
      half_space: as in `mean_energy`, likewise.

    Raises:
      ValueError: a pattern matches nothing, a leaf can be read in several ways, unknown name or
        method, a regulariser that needs more than weights.

    >>> params = {"a": {"kernel": jnp.eye(2)}, "b": {"kernel": jnp.ones((2, 2))}}
    >>> round(float(weight_energy(params, "cosine")), 4)
    1.0

    Reference: DH²L, §3.1 (E).
    """
    named = isinstance(metric, str | Regularizer)
    regularizer = as_regularizer(metric) if named else get_metric(metric)
    layers = _layers(params, include, exclude)
    stacks = [seen(regularizer, path, axes, leaf) for path, (axes, leaf) in layers.items()]
    weights = [1.0] * len(stacks)
    return sum_of_stacks(regularizer, stacks, weights, method=method, half_space=half_space)
