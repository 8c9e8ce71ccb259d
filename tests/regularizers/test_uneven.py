"""Head, R and constraints on trees whose classes lie at different depths, against dictionaries."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import paths as oracle

import dh2l_jax as dh2l
from dh2l_jax.models import HierarchicalHead, dense_kernel
from dh2l_jax.spheres import absolute_centers, head_logits, head_shapes, vector_init

D, OUTER, LAMBDAS = 4, 1.5, {"C1": 0.5, "C2": 2.0, "C3": 3.0}
# Seed of the tree: centres, logits, whether inner nodes store surfaces.
CASES = {
    22: ("free", "relative", False),
    18: ("epsilon", "relative", True),
    6: ("mean", "relative", False),
    16: ("free", "absolute", True),
}


def energy(c, _=None):
    """Smooth, so that differences tell the gradient; grows with c."""
    return c * c * c + c


def tree_of(classes):
    return dh2l.Hierarchy.from_paths({path[-1]: path[:-1] for path in classes})


def vectors(classes, inner, rng):
    """Surface vectors of the classes and, if asked for, of inner nodes; centres of all groups."""
    make = lambda keys: {node: rng.normal(size=D) for node in keys}  # noqa: E731
    groups = [node for node in oracle.nodes(classes)[len(classes) :] if node]
    return make([*classes, *(groups if inner else ())]), make(groups)


def parameters(classes, surface, center, kind):
    """The head's arrays: all classes at level L, inner nodes in the order of their level."""
    L = oracle.depth(classes)
    params = {f"surface_{L}": np.array([surface[path] for path in classes])}
    for level in range(1, L):
        if oracle.inner(classes, level)[0] in surface:
            params[f"surface_{level}"] = oracle.arrays(classes, surface, level)
        if kind == "free":
            params[f"center_{level + 1}"] = oracle.arrays(classes, center, level)
    return params


def oracle_terms(head, there):
    terms = {}
    for level in range(1, oracle.depth(head.classes) + 1):
        if head.has_vectors(level):
            terms[f"R_p/{level}"] = head.r_p(level, there, energy)
            for name, value in head.constraints(level, there, OUTER).items():
                terms[f"{name}/{level}"] = value
        if level > 1:
            terms[f"R_c/{level}"] = head.r_c(level, there, energy)
    return terms


def total(terms):
    return sum(LAMBDAS.get(name[:2], 1.0) * value for name, value in terms.items())


def batches(classes):
    """All classes; classes alone; inner nodes alone; both; nothing but the root."""
    nodes, C = oracle.nodes(classes), len(classes)
    rng = np.random.default_rng(0)
    picks = [range(C), rng.integers(0, C, 3), rng.integers(C, len(nodes), 2)]
    picks += [rng.integers(0, len(nodes), 4), [len(nodes) - 1]]
    return [np.resize(np.asarray(pick), C) for pick in picks]


def compiled(tree, kind, logits, epsilon):
    options = {"center": kind, "logits": logits, "epsilon": epsilon}
    R = {"constraints": LAMBDAS, "outer_radius": OUTER}

    @jax.jit
    def run(params, labels, x):
        def value(params, where):
            levels = dh2l.sphere_levels(params, tree, **options)
            return dh2l.hierarchical(levels, tree, energy, where=where, **R)

        levels = dh2l.sphere_levels(params, tree, **options)
        tables = [
            dh2l.logit_vectors(levels, tree, logits=logits, level=level)
            for level in range(1, tree.num_levels)
            if f"surface_{level}" in params
        ]
        where = jax.vmap(lambda row: dh2l.classes_present(row, tree))(labels)
        slopes = jax.vmap(jax.value_and_grad(value, has_aux=True), (None, 0))
        return where, *slopes(params, where), head_logits(params, x, tree, **options), tables

    return run


@pytest.mark.parametrize("seed", CASES)
def test_logits_terms_and_gradients(seed):
    kind, logits, inner = CASES[seed]
    rng = np.random.default_rng(seed)
    classes = oracle.random_tree(rng)
    tree, nodes = tree_of(classes), oracle.nodes(classes)
    surface, center = vectors(classes, inner, rng)
    x, labels = rng.normal(size=(3, D)), np.stack(batches(classes))
    with jax.enable_x64(True):
        params = parameters(classes, surface, center, kind)
        shapes = head_shapes(tree, D, center=kind, inner_surfaces=inner)
        assert shapes == {name: value.shape for name, value in params.items()}
        where, (values, terms), slopes, found, tables = jax.device_get(
            compiled(tree, kind, logits, 0.3)(params, labels, x)
        )
    options = {"kind": kind, "logits": logits, "epsilon": 0.3}
    head = oracle.Head(classes, surface, center, **options)
    for row, path in enumerate(classes):
        np.testing.assert_allclose(found[:, row], x @ head.logit_vector(path), rtol=1e-10)
    for level, rows in enumerate(tables, 1):
        expected = [head.logit_vector(node) for node in oracle.table(classes, level)]
        np.testing.assert_allclose(rows, expected, rtol=1e-10)
    move = [{n: rng.normal(size=D) for n in part} for part in (surface, center)]
    step = parameters(classes, *move, kind)
    for i, row in enumerate(labels):
        there = oracle.present(classes, [nodes[label] for label in row])
        assert where[i].tolist() == [node in there for node in nodes]
        expected = oracle_terms(head, there)
        assert set(terms) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(terms[name][i], value, rtol=1e-9, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(values[i], total(expected), rtol=1e-9, atol=1e-12)
        ahead, behind = (
            total(
                oracle_terms(
                    oracle.Head(
                        classes,
                        *(
                            {n: part[n] + t * to[n] for n in part}
                            for part, to in zip((surface, center), move, strict=True)
                        ),
                        **options,
                    ),
                    there,
                )
            )
            for t in (1e-6, -1e-6)
        )
        slope = sum(np.vdot(slopes[name][i], step[name]) for name in params)
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-7)


def test_a_mask_of_classes_and_an_upper_bound_change_nothing():
    """Two classes of a batch, of one group and of two; the class beside an inner node is alone."""
    deep = {f"deep {i}": "a/b" for i in range(8)}
    tree = dh2l.Hierarchy.from_paths({"sun": "", "cat": "a", **deep})
    r = np.random.default_rng(0)
    params = {name: r.normal(size=shape) for name, shape in head_shapes(tree, D).items()}

    @jax.jit
    def run(params, labels):
        nodes, narrow = (dh2l.classes_present(labels, n) for n in (tree, tree.num_classes))
        masks = ({"where": nodes}, {"where": narrow}, {"where": nodes, "max_present": 2})
        return [dh2l.hierarchical(params, tree, "d_am_cos", **options) for options in masks]

    for pair in ([5, 7], [1, 3]):
        first, second, bounded = run(params, jnp.array(pair))
        chex.assert_trees_all_equal(first, second)
        chex.assert_trees_all_close(first, bounded, atol=1e-6)
        assert sorted(first[1]) == ["R_c/2", "R_c/3", "R_p/1", "R_p/2", "R_p/3"]
        assert {name for name, term in first[1].items() if term} == (
            {"R_p/3"} if pair == [5, 7] else set()
        )


def test_the_module_has_one_vector_a_class_and_one_centre_a_true_group():
    tree = dh2l.Hierarchy.from_paths({"sun": "", "gull": "a/birds", "cat": "a", "tern": "a/birds"})
    head, x = HierarchicalHead(tree), jnp.ones((2, 4096))
    params = head.init(jax.random.key(0), x)["params"]
    shapes = {"surface_3": (4, 4096), "center_2": (1, 4096), "center_3": (1, 4096)}
    assert jax.tree.map(jnp.shape, params) == shapes
    kernel = dense_kernel({"params": {"head": params}}, tree)
    chex.assert_trees_all_close(x @ kernel, head.apply({"params": params}, x), atol=1e-4)
    # w_s − w_c has the variance 1/d, and so has w_s alone where there is no centre.
    np.testing.assert_allclose(np.var(kernel, axis=0), 1 / 4096, rtol=0.1)
    assert vector_init(tree)(jax.random.key(0), (1, 8)).shape == (1, 8)
    levels = dh2l.sphere_levels(params, tree)
    assert [len(centers) for centers in absolute_centers(levels, tree)] == [1, 1, 1]


UNEVEN = dh2l.Hierarchy.from_paths({"sun": "", "gull": "birds", "tern": "birds"})
ONES = {"surface_2": jnp.ones((3, D)), "center_2": jnp.ones((1, D))}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dh2l.sphere_levels(ONES | {"center_2": jnp.ones((2, D))}, UNEVEN), r"\(1, 4\)"),
        (lambda: dh2l.sphere_levels(ONES | {"surface_1": jnp.ones((2, D))}, UNEVEN), r"\(1, 4\)"),
        (lambda: dh2l.sphere_levels(ONES, UNEVEN, center="epsilon"), "'surface_1'"),
        (
            lambda: dh2l.logit_vectors(dh2l.sphere_levels(ONES, UNEVEN), UNEVEN, level=1),
            "level 1 stores no surface vectors",
        ),
        (
            lambda: dh2l.hierarchical([dh2l.Level(jnp.ones((3, D)))] * 2, UNEVEN, "d_am"),
            r"level 1 must have shape \(2, d\) or \(1, d\), found \(3, 4\)",
        ),
        (lambda: dh2l.classes_present(jnp.array([5]), UNEVEN), "nodes are 0..4"),
        (
            lambda: dh2l.hierarchical(ONES, UNEVEN, "d_am", where=jnp.ones(4, bool)),
            r"shape \(3,\) one entry a class or \(5,\) one a node, found \(4,\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
