"""Trees as the oracle and as the library have them."""

import numpy as np
from oracle import learn as oracle

import dh2l_jax as dh2l

EVEN = [tuple(path.split()) for path in ("0 00 a", "0 00 b", "0 01 c", "1 12 d", "1 12 e")]
UNEVEN = [
    tuple(path.split("/"))
    for path in (
        "sun",
        "animal/cat",
        "animal/bird/gull",
        "thing/tool/saw/rip",
        "thing/tool/axe",
        "animal/bird/tern",
    )
]
TREES = {
    "flat": [("a",), ("b",), ("c",)],
    "even": EVEN,
    "uneven": UNEVEN,
    "random": oracle.random_tree(np.random.default_rng(5)),
}


def hierarchy(classes):
    return dh2l.Hierarchy.from_paths({path[-1]: path[:-1] for path in classes})


def ids(classes, tree):
    """Node → number, the root's last."""
    return {
        node: tree.node_id(node) if node else tree.num_nodes - 1
        for node in [*oracle.nodes(classes), ()]
    }


def level_arrays(scores, classes, tree):
    """A (b, size(l)) array a level of dicts of scores; NaN where a class is only shown again."""
    paths = {number: node for node, number in ids(classes, tree).items()}
    return [
        np.array(
            [
                [row[paths[i]] if len(paths[i]) == level else np.nan for i in numbers]
                for row in scores
            ]
        )
        for level in range(1, tree.num_levels + 1)
        for numbers in [tree.level_nodes(level).tolist()]
    ]
