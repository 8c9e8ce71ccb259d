"""Trees whose classes lie at different depths: tables, nodes and names against dictionaries."""

import itertools
import pickle

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from oracle import paths as oracle

from dh2l_jax import Hierarchy

seeds = st.integers(0, 2**32 - 1)
WILD = {"sun": "", "gull": "animals/birds", "cat": "animals", "tern": "animals/birds"}


def classes_of(seed):
    return oracle.random_tree(np.random.default_rng(seed))


def from_paths(classes):
    return Hierarchy.from_paths({path[-1]: path[:-1] for path in classes})


@hypothesis.given(seed=seeds)
@hypothesis.settings(max_examples=15)
def test_nodes_of_random_trees(seed):
    classes = classes_of(seed)
    tree, nodes = from_paths(classes), oracle.nodes(classes)
    ids = {node: number for number, node in enumerate(nodes)}
    assert (tree.num_levels, tree.num_classes) == (oracle.depth(classes), len(classes))
    assert tree.num_nodes == len(nodes)
    assert tree.node_parents().tolist() == [ids[node[:-1]] for node in nodes]
    assert tree.node_depths().tolist() == [len(node) for node in nodes]
    assert [tree.depth(i) for i in range(len(nodes))] == tree.node_depths().tolist()
    assert tree.node_heights().tolist() == [oracle.height(classes, node) for node in nodes]
    for level in range(tree.num_levels + 1):
        entries = oracle.table(classes, level)
        assert tree.level_nodes(level).tolist() == [ids[node] for node in entries]
        assert tree.size(level) == len(entries)
        inner = [ids[node] for node in oracle.inner(classes, level)]
        assert list(tree.inner_nodes(level)) == inner
        if level:
            assert tree.names(level) == tuple(node[-1] for node in entries)
            above = oracle.table(classes, level - 1)
            assert tree.parents(level).tolist() == [above.index(n[: level - 1]) for n in entries]
            true = [node for node in entries if len(node) == level]
            assert tree.members(level).tolist() == [ids[node] for node in true]
            row = tree.ancestor_nodes()[level - 1].tolist()
            assert row == [ids[path[:level]] for path in classes]
            assert tree.level_nodes(level)[tree.ancestors()[level - 1]].tolist() == row
    heights = tree.lca_height()
    for (i, a), (j, b) in itertools.product(enumerate(classes), repeat=2):
        assert heights[i, j] == oracle.height(classes, oracle.lca(a, b))
    for node, name in zip(nodes, tree.unique_names(), strict=True):
        assert tree.node_id(name) == tree.node_id("/".join(node)) == tree.node_id(node) == ids[node]


@hypothesis.given(seed=seeds)
@hypothesis.settings(max_examples=10)
def test_one_tree_from_paths_pairs_and_files(tmp_path_factory, seed):
    classes = classes_of(seed)
    tree = from_paths(classes)
    depths = [len(path) for path in classes]
    assert (tree.class_depths or (tree.num_levels,) * len(classes)) == tuple(depths)
    full = {path: "/".join(path) for path in oracle.nodes(classes)}
    pairs = [(full[node], full[node[:-1]] or "root") for node in full if node]
    again = Hierarchy.from_edges(pairs[::-1], classes=[full[path] for path in classes])
    assert again.parent_table == tree.parent_table
    assert again.class_depths == tree.class_depths
    assert [name.split("/")[-1] for name in again.unique_names()[: len(classes)]] == list(
        tree.names(tree.num_levels)
    )
    lines = ["class" + ",above" * (max(depths) - 1)]
    for path in classes:
        cells = [full[path[:n]] for n in range(len(path), 0, -1)]
        lines.append(",".join(cells + [""] * (max(depths) - len(cells))))
    file = tmp_path_factory.mktemp("tree") / "classes.csv"
    file.write_text("\n".join(lines))
    assert Hierarchy.from_csv(file) == again
    copy = pickle.loads(pickle.dumps(tree))
    assert (copy, hash(copy), repr(copy)) == (tree, hash(tree), repr(tree))
    assert Hierarchy(tree.parent_table, tree.node_names, tree.class_depths) == tree


def test_an_even_tree_is_what_it_was_however_it_is_made(tmp_path):
    names = [["cold", "warm"], ["fish", "bird", "cat"], ["cod", "owl", "eel", "emu", "lion"]]
    tree = Hierarchy.from_parents(([0, 1, 1], [0, 1, 0, 1, 2]), names=names)
    paths = {"cod": "cold/fish", "owl": "warm/bird", "eel": "cold/fish"}
    paths |= {"emu": "warm/bird", "lion": "warm/cat"}
    edges = {(name, path.split("/")[1]): None for name, path in paths.items()}
    edges |= {tuple(path.split("/")[::-1]): None for path in paths.values()}
    file = tmp_path / "classes.csv"
    rows = [f"{name},{path.split('/')[1]},{path.split('/')[0]},\n" for name, path in paths.items()]
    file.write_text("class,parent,grandparent,more\n" + "".join(rows))
    made = [Hierarchy.from_paths(paths), Hierarchy.from_edges(edges), Hierarchy.from_csv(file)]
    for other in (*made, Hierarchy(tree.parent_table, tree.node_names, (3,) * 5)):
        assert (other, hash(other), repr(other)) == (tree, hash(tree), "Hierarchy({2, 3, 5})")
        assert (
            vars(other)
            == vars(tree)
            == {
                "parent_table": ((0, 0), (0, 1, 1), (0, 1, 0, 1, 2)),
                "node_names": tuple(map(tuple, names)),
            }
        )
        assert hash(other) == hash((other.parent_table, other.node_names))
    assert tree.class_depths == ()
    assert tree != Hierarchy.from_paths(paths | {"sun": ""})
    assert [tree.members(level).tolist() for level in (1, 2, 3)] == [
        [8, 9],
        [5, 6, 7],
        [0, 1, 2, 3, 4],
    ]


def test_a_tree_says_that_it_is_uneven():
    tree = Hierarchy.from_paths(WILD)
    assert repr(tree) == "Hierarchy(4 classes at depths {1: 1, 2: 1, 3: 2}, 2 inner nodes)"
    assert tree != Hierarchy(tree.parent_table, tree.node_names)
    assert len({tree, Hierarchy(tree.parent_table, tree.node_names)}) == 2


def test_one_root_or_several():
    pairs = [("pug", "dog"), ("dog", "animal"), ("cat", "animal"), ("oak", "tree"), ("oak", "tree")]
    assert Hierarchy.from_edges(pairs[:3]).node_names == (("dog", "cat"), ("pug", "cat"))
    tree = Hierarchy.from_edges(iter(pairs))
    assert tree.names(1) == ("animal", "tree")
    assert tree.names(3) == ("pug", "cat", "oak")
    assert Hierarchy.from_edges(pairs, classes=["oak", "cat"]).node_names == (
        ("tree", "animal"),
        ("oak", "cat"),
    )


WORDS = [("a", "b"), ("b", "c"), ("c", "d")]
TWOFOLD = Hierarchy.from_paths({"gull": "birds", "toy": "birds/other", "car": "x/other"})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Hierarchy.from_edges([*WORDS, ("d", "b")]), "'b' lies below itself: b in c in d"),
        (lambda: Hierarchy.from_edges([("a", "a")]), "'a' lies below itself: a in a"),
        (lambda: Hierarchy.from_edges([*WORDS, ("a", "d")]), "'a' has two parents, 'b' and 'd'"),
        (lambda: Hierarchy.from_edges(WORDS, classes=["a", "b"]), "'b' is also an inner node, abo"),
        (lambda: Hierarchy.from_edges(WORDS, classes=["a", "d"]), "'d' is the child of no pair"),
        (lambda: Hierarchy.from_edges(WORDS, classes=["a", "a"]), "class 'a' occurs twice"),
        (lambda: Hierarchy.from_edges([]), "at least one class"),
        (lambda: Hierarchy.from_edges([("a", " ")]), "pairs .child, parent. of names"),
        (lambda: Hierarchy.from_edges(["ab"]), "pairs .child, parent. of names, found 'ab'"),
        (lambda: Hierarchy.from_paths({"x": "a", "y": "a/x"}), "'x' is also an inner.*'y'"),
        (lambda: Hierarchy(((0, 0),), (), (1,)), "depths of 2 classes"),
        (lambda: Hierarchy(((0, 0), (0, 1)), (), (0, 2)), "1..2.*from 0 to 2"),
        (lambda: Hierarchy(((0, 0), (0, 0, 1)), (), (1, 2, 2)), "class '0' of depth 1 .* level 1"),
        (lambda: Hierarchy(((0, 0), (0, 1)), (("p", "q"), ("a", "b")), (1, 2)), "found 'p' above"),
        (lambda: TWOFOLD.node_id("other"), "names 2 nodes: .* 'birds/other', 'x/other'"),
        (lambda: TWOFOLD.node_id("gul"), "did you mean 'gull'"),
        (lambda: TWOFOLD.node_id(("x",) * 2), "unknown node"),
        (lambda: TWOFOLD.depth(8), r"0\.\.7"),
    ],
)
def test_what_is_no_tree_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
