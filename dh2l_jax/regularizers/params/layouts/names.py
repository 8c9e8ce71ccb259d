"""Bare arrays: what a leaf's name and shape tell, and what it could be where they don't.

`kernel` (Flax) and `w` (Haiku) hold inputs first; of rank 4 they are convolutions where nothing
contradicts. A name of torch or Equinox, a scanned layer or a head's axis can't be told from these.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from dh2l_jax.regularizers.params.rules import Rule

__all__ = ["Known", "ask", "by_name", "no_vectors"]


class Known(NamedTuple):
    """How a leaf is read.

    Attributes:
      axes: text, or None where it can't be known.
      source: who says so.
      left_out: why the leaf holds no vectors, or "".
    """

    axes: str | None
    source: str
    left_out: str = ""


BIAS = re.compile(r"(^|_)bias(_|$)|^(b|beta|offset)$")
NORM = re.compile(r"^(scale|gamma|mean|var|running_mean|running_var|num_batches_tracked)$")
SAYS_OTHERWISE = re.compile(r"transpose|scan|stack|vmap|ensemble", re.IGNORECASE)
LARGEST_KERNEL = 11

# What a leaf of a rank could be; outputs come last where inputs come first.
IN_FIRST = {
    2: {"i o -> o i": "inputs first", "o i -> o i": "outputs first, or a vector a row"},
    3: {
        "i h d -> (h d) i": "heads",
        "i h d -> h d i": "within each head",
        "h d o -> o (h d)": "the heads' output",
        "l i o -> l o i": "scanned or stacked layers",
        "k i o -> o (k i)": "a convolution",
    },
    4: {
        "kh kw i o -> o (kh kw i)": "a convolution",
        "kh kw o i -> o (kh kw i)": "a transposed convolution",
        "l i h d -> l (h d) i": "scanned heads",
        "l k i o -> l o (k i)": "stacked convolutions",
    },
}
OUT_FIRST = {
    2: {"o i -> o i": "outputs first, as torch and Equinox", "i o -> o i": "inputs first"},
    3: {"o i k -> o (i k)": "a convolution", "l o i -> l o i": "stacked layers"},
    4: {
        "o i kh kw -> o (i kh kw)": "a convolution",
        "i o kh kw -> o (i kh kw)": "a transposed convolution of torch",
    },
    5: {
        "o i kd kh kw -> o (i kd kh kw)": "a convolution",
        "l o i kh kw -> l o (i kh kw)": "stacked convolutions",
    },
}
ANY_RANK = {
    "... kh kw i o -> ... o (kh kw i)": "stacked convolutions",
    "kd kh kw i o -> o (kd kh kw i)": "a convolution",
}


def no_vectors(path: str, leaf: object) -> str:
    """Why a leaf holds no vectors, by name, rank and dtype; "" if it may."""
    name, dtype = _name(path), str(getattr(leaf, "dtype", ""))
    if BIAS.search(name):
        return "a bias"
    if NORM.search(name):
        return "of a normalisation"
    if not dtype.startswith(("float", "bfloat")):
        return f"{dtype}, not floats: frozen"
    return "" if len(getattr(leaf, "shape", ())) > 1 else "one axis: no vectors"


def by_name(path: str, shape: tuple[int, ...]) -> str | None:
    """How a leaf is read whose name and shape leave no doubt, or None.

    >>> by_name("dense/kernel", (64, 10)), by_name("attn/query/kernel", (5, 4, 3))
    ('i o -> o i', None)
    """
    name, rank = _name(path), len(shape)
    if name in ("embedding", "embeddings") and rank == 2:
        return "v d -> v d"
    if name not in ("kernel", "w"):
        return None
    if rank == 2:
        return "i o -> o i"
    square = rank == 4 and shape[0] == shape[1] <= LARGEST_KERNEL
    if square and not SAYS_OTHERWISE.search(path):
        return "kh kw i o -> o (kh kw i)"
    return None


def ask(open_leaves: list[tuple[str, tuple[int, ...], Rule]]) -> ValueError:
    """The error that says how leaves can be read, and prints the rule to add."""
    path, shape, rule = open_leaves[0]
    table = OUT_FIRST if "weight" in _name(path) else IN_FIRST
    fits = table.get(len(shape), ANY_RANK)
    readings = ", ".join(f"'{axes}' ({what})" for axes, what in fits.items())
    more = f" (and {len(open_leaves) - 1} more leaves)" if len(open_leaves) > 1 else ""
    line = f'r"^{re.escape(path)}$": ("{rule.name}", {rule.weight:g}, "{next(iter(fits))}")'
    return ValueError(
        f"{path!r} of shape {shape} can be read as {readings}{more}: give the model itself where "
        f"its layers say which, or add a rule of dh2l.plan before the others, such as {line}"
    )


def _name(path: str) -> str:
    """The leaf's own name; torch separates names by dots."""
    return re.split(r"[/.]", path)[-1]
