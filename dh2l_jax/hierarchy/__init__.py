"""The tree of classes; `published` trees, `class_lists` of files, and scores from `counts`."""

from dh2l_jax.hierarchy.tree import Hierarchy

__all__ = ["Hierarchy"]
