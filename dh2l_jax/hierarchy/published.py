"""Published trees of classes, as `Hierarchy` objects whose leaves are in label order.

Each lives in `trees/<name>.json`, with its source and licence: the names of
every level in `level1`, `level2`, ... and each node's parent in `level<l>_to_level<l-1>`. Where the
parents follow from the names of the classes, `rule` says how and `exceptions` lists the rest.
"""

from __future__ import annotations

import functools
import json
from importlib import resources

from dh2l_jax.checks import unknown_name
from dh2l_jax.hierarchy.tree import Hierarchy

__all__ = ["TAXONOMIES", "taxonomy"]

TAXONOMIES = ("cars196", "cifar100", "cifar100_five_level", "cub200", "fashion_mnist")


def taxonomy(name: str) -> Hierarchy:
    """The class tree of a data set.

    Args:
      name: one of `TAXONOMIES`.

    Returns:
      A named `Hierarchy`; leaf i is the class with label i, by the numbering of the data set.

    Raises:
      ValueError: there is no such tree; the message holds the nearest name.

    >>> tree = taxonomy("fashion_mnist")
    >>> tree
    Hierarchy({2, 6, 10})
    >>> [tree.names(level)[node] for level, node in enumerate(tree.ancestors()[:, 7], 1)]
    ['Goods', 'Shoes', 'Sneaker']
    >>> [taxonomy(name) for name in ("cifar100", "cub200", "cars196", "cifar100_five_level")]
    [Hierarchy({20, 100}), Hierarchy({70, 200}), Hierarchy({9, 196}), Hierarchy({2, 4, 8, 20, 100})]
    """
    if name not in TAXONOMIES:
        raise ValueError(unknown_name("taxonomy", name, TAXONOMIES))
    return _read(name)


@functools.cache
def _read(name: str) -> Hierarchy:
    text = (
        resources.files("dh2l_jax.hierarchy").joinpath("trees", f"{name}.json").read_text("utf-8")
    )
    table = json.loads(text)
    depth = len(table["levels"])
    return Hierarchy.from_parents(
        [table[f"level{level}_to_level{level - 1}"] for level in range(2, depth + 1)],
        names=[table[f"level{level}"] for level in range(1, depth + 1)],
    )
