"""The tree of classes; `published` trees, `class_lists` of files, and scores from `counts`.

`losses`, `decoding` and `frames` are modules of `learn`, imported when they are first asked for: a
tree alone needs no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dh2l_jax.hierarchy.tree import Hierarchy

if TYPE_CHECKING:
    from dh2l_jax.hierarchy.learn import decoding as decoding
    from dh2l_jax.hierarchy.learn import frames as frames
    from dh2l_jax.hierarchy.learn import losses as losses

__all__ = ["Hierarchy"]

_LEARN = ("decoding", "frames", "losses")


def __getattr__(name: str) -> Any:
    if name in _LEARN:
        return importlib.import_module(f"dh2l_jax.hierarchy.learn.{name}")
    raise AttributeError(f"module 'dh2l_jax.hierarchy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LEARN})
