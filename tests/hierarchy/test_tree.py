"""The tree of classes: constructors, random trees by brute force, files good and bad."""

import functools

import chex
import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from oracle import tree as oracle_tree

from dh2l_jax import Hierarchy

DEEP = ((0, 0, 1), (0, 1, 1, 2, 0), (0, 0, 1, 2, 2, 3, 4))  # {2, 3, 5, 7}, depth 4


@st.composite
def trees(draw):
    """Parent tables (p_2, ..., p_L) of depth 1 to 4 in which every inner node has a child."""
    size = draw(st.integers(1, 3))
    if (depth := draw(st.integers(1, 4))) == 1:
        return size, ()
    table = []
    for _ in range(depth - 1):
        extra = draw(st.lists(st.integers(0, size - 1), max_size=3))
        parents = draw(st.permutations(list(range(size)) + extra))
        table.append(tuple(parents))
        size = len(parents)
    return len(table[0]), tuple(table)


def build(tree):
    flat, table = tree
    return Hierarchy.from_parents(table) if table else Hierarchy.flat(flat)


def full_table(h):
    return [h.parents(level).tolist() for level in range(1, h.num_levels + 1)]


@hypothesis.given(tree=trees())
def test_a_random_tree_against_brute_force(tree):
    h = build(tree)
    table = full_table(h)
    depth = len(table)
    assert h.num_levels == len(tree[1]) + 1
    assert [tuple(row) for row in table[1:]] == list(tree[1])
    assert not any(table[0])
    assert h.size(0) == 1
    assert h.num_classes == h.size(depth) == len(table[-1])
    for level in range(1, depth + 1):
        parents, above = table[level - 1], h.size(level - 1)
        adjacency = h.adjacency(level)
        chex.assert_shape(adjacency, (len(parents), above))
        for i, k in np.ndindex(*adjacency.shape):
            assert adjacency[i, k] == (parents[i] == k)
        assert h.group_sizes(level).tolist() == [parents.count(k) for k in range(above)]
        assert min(h.group_sizes(level)) >= 1
    for level, leaf in np.ndindex(depth, h.num_classes):
        assert h.ancestors()[level, leaf] == oracle_tree.ancestor(table, leaf, level + 1)
    for i, j in np.ndindex(h.num_classes, h.num_classes):
        shared = [
            level
            for level in range(depth + 1)
            if oracle_tree.ancestor(table, i, level) == oracle_tree.ancestor(table, j, level)
        ]
        assert h.lca_height()[i, j] == depth - max(shared)


@hypothesis.given(tree=trees())
def test_round_trips(tree):
    h = build(tree)
    if h.num_levels > 1:
        assert Hierarchy.from_parents([h.parents(n) for n in range(2, h.num_levels + 1)]) == h
    paths = {}
    for leaf in range(h.num_classes):
        line = h.ancestors()[:-1, leaf]
        paths[f"class {leaf}"] = [f"{level}-{node}" for level, node in enumerate(line)]
    again = Hierarchy.from_paths(paths)
    # Inner nodes are numbered by appearance, so what may be compared is the relation of the leaves.
    assert again.num_levels == h.num_levels
    np.testing.assert_array_equal(again.lca_height(), h.lca_height())
    assert again.names(again.num_levels) == tuple(paths)


def test_depth_one():
    h = Hierarchy.flat(10)
    assert (h.num_levels, h.num_classes, h.size(1)) == (1, 10, 10)
    assert h.group_sizes(1).tolist() == [10]
    assert h.adjacency(1).tolist() == [[1]] * 10
    np.testing.assert_array_equal(h.lca_height(), 1 - np.eye(10))
    np.testing.assert_array_equal(h.ancestors(), [np.arange(10)])


def test_two_levels_with_a_singleton_and_scattered_groups():
    h = Hierarchy.two_level([1, 0, 1, 2, 1])
    assert (h.num_levels, h.size(1), h.num_classes) == (2, 3, 5)
    assert h.group_sizes(2).tolist() == [1, 3, 1]
    assert h.group_sizes(1).tolist() == [3]
    assert h.lca_height()[0].tolist() == [0, 2, 1, 2, 1]
    assert h == Hierarchy.from_parents(([1, 0, 1, 2, 1],))


def test_depth_four():
    h = Hierarchy.from_parents(DEEP)
    assert [h.size(level) for level in range(5)] == [1, 2, 3, 5, 7]
    assert h.ancestors()[:, 6].tolist() == [0, 0, 4, 6]
    # Leaves 0 and 1 share node 0 of level 3; 0 and 6 node 0 of level 2; 0 and 2 node 0 of level 1.
    assert h.lca_height()[0].tolist() == [0, 1, 3, 3, 3, 4, 2]


def test_arrays_are_small_integers_and_fresh():
    h = Hierarchy.from_parents(DEEP)
    for array in (h.parents(2), h.adjacency(3), h.group_sizes(4), h.ancestors(), h.lca_height()):
        assert np.issubdtype(array.dtype, np.integer)
    h.lca_height()[:] = -1
    h.parents(2)[:] = 7
    assert h == Hierarchy.from_parents(DEEP)
    assert h.lca_height().min() == 0
    assert h.parents(2).max() == 1


def test_names():
    h = Hierarchy.two_level([0, 1, 0], names=[["animal", "thing"], ["cat", "cup", "dog"]])
    assert h.names(1) == ("animal", "thing")
    assert h.names(2) == ("cat", "cup", "dog")
    assert Hierarchy.flat(2, names=["a", "b"]).names(1) == ("a", "b")
    default = Hierarchy.two_level([0, 1, 0]).names(2)
    assert len(set(default)) == 3


def test_equal_trees_are_one_static_argument():
    chex.clear_trace_counter()

    @functools.partial(jax.jit, static_argnames="h")
    @chex.assert_max_traces(n=2)
    def total(x, h):
        return x @ h.adjacency(2)

    for parents, expected in (([0, 0, 1], [3, 4]), ([0, 0, 1], [3, 4]), ([0, 1, 1], [1, 6])):
        h = Hierarchy.two_level(parents)
        np.testing.assert_array_equal(total(np.float32([1, 2, 4]), h), expected)
        assert hash(h) == hash(Hierarchy.two_level(parents))
    assert Hierarchy.two_level([0, 0, 1]) != Hierarchy.two_level([0, 1, 1])
    assert len({Hierarchy.flat(3), Hierarchy.flat(3), Hierarchy.flat(4)}) == 2


def test_paths_as_text_or_sequences():
    text = Hierarchy.from_paths(
        {"sandal": "goods/shoes", "bag": "goods/bags", "coat": "wear/coats"}
    )
    rows = Hierarchy.from_paths(
        {"sandal": ["goods", "shoes"], "bag": ("goods", "bags"), "coat": ("wear", "coats")}
    )
    assert text == rows
    assert text.names(1) == ("goods", "wear")
    assert text.names(2) == ("shoes", "bags", "coats")
    assert text.names(3) == ("sandal", "bag", "coat")
    assert text.parents(2).tolist() == [0, 0, 1]
    assert Hierarchy.from_paths({"a": "", "b": ""}).num_levels == 1
    # The same word under two parents is two nodes: a path names a node in full.
    assert Hierarchy.from_paths({"a": "x/other", "b": "y/other"}).size(2) == 2


def csv(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "tree.csv"
    path.write_bytes(text.encode(encoding))
    return path


GOOD = "class,parent,grandparent\ncat,feline,animal\ncup,dish,thing\nlion,feline,animal\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (GOOD, "utf-8"),
        (GOOD, "utf-8-sig"),
        (GOOD.replace("\n", "\r\n"), "utf-8"),
        (GOOD.replace(",", " , "), "utf-8"),
        (GOOD.replace("\n", "\n\n"), "utf-8"),
        (GOOD.rstrip("\n"), "utf-8"),
        (GOOD.replace("cup", '"cup"'), "utf-8"),
    ],
    ids=["plain", "byte-order mark", "CRLF", "spaces", "blank lines", "no last newline", "quotes"],
)
def test_good_files(tmp_path, text, encoding):
    h = Hierarchy.from_csv(csv(tmp_path, text, encoding))
    assert h.names(3) == ("cat", "cup", "lion")
    assert h.names(2) == ("feline", "dish")
    assert h.names(1) == ("animal", "thing")
    assert h.parents(3).tolist() == [0, 1, 0]
    assert h == Hierarchy.from_csv(str(csv(tmp_path, GOOD)))


def test_a_file_with_classes_only_is_flat(tmp_path):
    assert Hierarchy.from_csv(csv(tmp_path, "class\na\nb\n")).num_levels == 1


def test_commas_in_quotes_and_accents(tmp_path):
    h = Hierarchy.from_csv(csv(tmp_path, 'class,parent\n"Café, large",Häuser\nb,c\n'))
    assert h.names(2)[0] == "Café, large"
    assert h.names(1)[0] == "Häuser"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("class,parent\n", "no class|at least one class|empty"),
        ("name,parent\na,b\n", "class"),
        ("class,parent\na,x\nb\n", r"line 3|:3"),
        ("class,parent\na,x\nb,y,z\n", r"(line 3|:3)"),
        ("class,parent\na,x\nb,y\na,y\n", r"(line 4|:4).*'a'|'a'.*(line 4|:4)"),
        ("class,parent\na,x\n,y\n", r"line 3|:3"),
        (
            "class,parent,grandparent\na,x,y\nb,,y\n",
            r"line 3: class 'b' has a blank name before 'y'",
        ),
        ("class,parent,grandparent\na,x,y\nx,y,\n", r"line 3: 'x' is a class here and a parent on"),
        (
            "class,parent,grandparent\na,x,t\nb,x,u\n",
            r"(line 3|:3).*'x'|'x'.*(line 3|:3)",
        ),
        (
            "class,parent\ncat,cat\n",
            r"line 2: 'cat' is a parent here and a class on line 2: a name",
        ),
        (
            "class,parent,grandparent\ncat,dog,cat\ndog,cat,dog\n",
            r"line 2: 'cat' is a grandparent here and a class on line 2",
        ),
        (
            "class,parent,grandparent\na,x,y\nb,y,x\n",
            r"line 3: 'y' stands under 'x' here and under the root on line 2",
        ),
        (
            "class,parent\ncat,pet\ntabby,cat\n",
            r"line 3: 'cat' is a parent here and a class on line 2",
        ),
    ],
    ids=[
        "empty file",
        "header alone",
        "no class column",
        "missing column",
        "extra column",
        "duplicate class",
        "blank class",
        "blank parent below a grandparent",
        "a class above another, less deep",
        "two parents",
        "its own parent",
        "its own grandparent",
        "a circle of groups",
        "a class above another",
    ],
)
def test_bad_files_name_the_file_and_the_line(tmp_path, text, words):
    with pytest.raises(ValueError, match=words) as error:
        Hierarchy.from_csv(csv(tmp_path, text))
    assert "tree.csv" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match=r"nowhere\.csv"):
        Hierarchy.from_csv(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Hierarchy.flat(0), ValueError, "0|no nodes"),
        (lambda: Hierarchy.flat(-3), ValueError, "-3|no nodes"),
        (lambda: Hierarchy.flat(2.0), TypeError, "float|2.0"),
        (lambda: Hierarchy.flat(2, names=["a"]), ValueError, "1.*2|2.*1"),
        (lambda: Hierarchy.flat(2, names=["a", "a"]), ValueError, "'a'"),
        (lambda: Hierarchy.two_level([]), ValueError, "no nodes|no parents"),
        (lambda: Hierarchy.two_level([0, -1]), ValueError, "-1"),
        (lambda: Hierarchy.two_level([0, 2]), ValueError, "1"),
        (lambda: Hierarchy.two_level([0, 0.5]), TypeError, "0.5"),
        (lambda: Hierarchy.two_level([0, True]), TypeError, "True|bool"),
        (lambda: Hierarchy.two_level(["0", "1"]), TypeError, "'0'"),
        (lambda: Hierarchy.two_level(3), TypeError, "3|int"),
        (lambda: Hierarchy.from_parents(()), ValueError, "flat"),
        (lambda: Hierarchy.from_parents(([0, 1], [0, 0])), ValueError, "1"),
        (lambda: Hierarchy.from_parents(([0, 1], [0, 1, 2])), ValueError, "2"),
        (lambda: Hierarchy.from_paths({}), ValueError, "empty|at least one"),
        (lambda: Hierarchy.from_paths(["a"]), TypeError, "list"),
        (lambda: Hierarchy.from_paths({"x": "", "b": "x/y"}), ValueError, "'x'.*above class 'b'"),
        (lambda: Hierarchy.from_paths({"a": "x//y", "b": "x/z/y"}), ValueError, "'a'"),
        (lambda: Hierarchy.flat(3).size(2), ValueError, "2.*1"),
        (lambda: Hierarchy.flat(3).parents(0), ValueError, "0"),
    ],
)
def test_bad_input_names_the_node(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    ("parents", "gap"), [([1, 1, 5], 0), ([0, 2], 1), ([0, 10**12], 1), ([0, 1, 3, 3], 2)]
)
def test_a_gap_in_the_parents_is_named(parents, gap):
    with pytest.raises(
        ValueError, match=rf"level 2 leave out number {gap}: .* 0\.\.{max(parents)},"
    ):
        Hierarchy.two_level(parents)
