"""Centres, projections and R of Eqs. (3)-(6) on trees of depth 1, 2, 3: whole and mini-batch."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import tree as oracle_tree
from support.helpers import assert_close

import dh2l_jax as dh2l
from dh2l_jax.spheres import absolute_centers

DIM = 5
TREES = {
    "flat": [[0] * 6],
    "two levels": [[0] * 3, [0, 1, 1, 2, 0, 1, 1]],
    "three levels": [[0, 0], [0, 1, 1, 0, 1], [0, 1, 1, 2, 4, 3, 4, 4, 2]],
}
every_tree = pytest.mark.parametrize("parents", TREES.values(), ids=TREES.keys())


def tree_of(parents):
    return (
        dh2l.Hierarchy.from_parents(tuple(parents[1:]))
        if parents[1:]
        else (dh2l.Hierarchy.flat(len(parents[0])))
    )


def parameters(parents, seed=0, inner=True):
    """A free surface vector for each node (or leaf) and a centre for each group below level 1."""
    r = np.random.default_rng(seed)
    make = lambda n: r.normal(size=(n, DIM)).astype(np.float32)  # noqa: E731
    depth, params = len(parents), {}
    for level in range(1, depth + 1):
        if inner or level == depth:
            params[f"surface_{level}"] = make(len(parents[level - 1]))
        if level >= 2:
            params[f"center_{level}"] = make(len(parents[level - 2]))
    return params


def oracle_terms(params, parents, labels, name):
    """Every R_p and R_c of Eqs. (5), (6) over the pairs of a batch, with gradients by parameter."""
    terms, gradient = {}, {k: np.zeros_like(v, float) for k, v in params.items()}
    for level in range(1, len(parents) + 1):
        groups = parents[level - 1]
        surface, center = params.get(f"surface_{level}"), params.get(f"center_{level}")
        if surface is not None:
            vectors = surface.astype(float)
            if center is not None:
                vectors = oracle_tree.eq1_projection(vectors, center.astype(float), groups)
            value, slope = oracle_tree.minibatch_projection_energy(
                vectors, parents, level, labels, name
            )
            terms[f"R_p/{level}"] = value
            gradient[f"surface_{level}"] += slope
            for i, g in enumerate(groups if center is not None else ()):
                gradient[f"center_{level}"][g] -= slope[i]
        if center is not None:
            value, slope = oracle_tree.minibatch_center_energy(
                center.astype(float), parents, level, labels, name
            )
            terms[f"R_c/{level}"] = value
            gradient[f"center_{level}"] += slope
    return terms, gradient


@every_tree
@pytest.mark.parametrize(
    ("name", "inner"),
    [("d_am_cos", False), ("angular2", True)],
    ids=["leaf surfaces", "all surfaces"],
)
def test_r_is_the_enumeration_of_the_batch(parents, inner, name):
    """One trace for all batches; the first batch holds every class and so is the whole tree."""
    chex.clear_trace_counter()
    tree, params = tree_of(parents), parameters(parents, inner=inner)
    classes = len(parents[-1])

    @jax.jit
    @chex.assert_max_traces(n=1)
    def batch(params, labels):
        where = dh2l.classes_present(labels, classes)
        fn = lambda p: dh2l.hierarchical(p, tree, name, where=where)  # noqa: E731
        return jax.value_and_grad(fn, has_aux=True)(params)

    r = np.random.default_rng(1)
    batches = [np.arange(12) % classes, np.full(12, 1)]
    batches += [r.integers(0, classes, 3).repeat(4) for _ in range(6)]
    for labels in batches:
        (value, terms), gradient = batch(params, labels)
        expected, expected_gradient = oracle_terms(params, parents, labels, name)
        assert set(terms) == set(expected)
        for key, term in expected.items():
            np.testing.assert_allclose(terms[key], term, rtol=3e-6, atol=1e-6, err_msg=key)
        np.testing.assert_allclose(value, sum(expected.values()), rtol=3e-6, atol=2e-6)
        for key, slope in expected_gradient.items():
            assert_close(gradient[key], slope)
    whole, _ = jax.jit(lambda p: dh2l.hierarchical(p, tree, name))(params)
    (value, _), _ = batch(params, batches[0])
    np.testing.assert_allclose(whole, value, rtol=1e-5, atol=1e-6)


def test_weights_are_by_level():
    parents = TREES["three levels"]
    tree, params = tree_of(parents), parameters(parents)
    run = jax.jit(lambda w: dh2l.hierarchical(params, tree, "d_am", weight=w))
    value, terms = run(0.5)
    np.testing.assert_allclose(value, 0.5 * sum(terms.values()), rtol=1e-6)
    value, terms = run({3: 0.1, 2: 2.0})
    expected = 0.1 * (terms["R_p/3"] + terms["R_c/3"]) + 2 * (terms["R_p/2"] + terms["R_c/2"])
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_all_pairs_of_centres_when_asked():
    parents = TREES["three levels"]
    tree, params = tree_of(parents), parameters(parents)
    run = jax.jit(
        lambda p, kind: dh2l.hierarchical(p, tree, "d_am", pairs=kind)[1], static_argnums=1
    )
    terms, siblings = run(params, "all"), run(params, "siblings")
    labels = range(9)
    for level in (2, 3):
        expected, _ = oracle_tree.minibatch_center_energy(
            params[f"center_{level}"].astype(float), parents, level, labels, "d_am", siblings=False
        )
        np.testing.assert_allclose(terms[f"R_c/{level}"], expected, rtol=3e-6)
    assert abs(siblings["R_c/3"] - terms["R_c/3"]) > 1e-3


def test_levels_are_taken_as_well_as_parameters():
    parents = TREES["two levels"]
    tree, params = tree_of(parents), parameters(parents)
    levels = (
        dh2l.Level(jnp.asarray(params["surface_1"])),
        dh2l.Level(
            dh2l.project(params["surface_2"], params["center_2"], tree.parents(2)),
            jnp.asarray(params["center_2"]),
        ),
    )
    run = jax.jit(lambda x: dh2l.hierarchical(x, tree, "d_am"))
    chex.assert_trees_all_close(run(levels), run(params), rtol=1e-6)


LAMBDAS = {"C1": 0.5, "C2": 2.0, "C3": 3.0}


@functools.cache
def jitted_r(tree, switched_on):
    constraints = {key: LAMBDAS[key] for key in switched_on}
    return jax.jit(
        lambda params, where: dh2l.hierarchical(
            params, tree, "d_am", where=where, constraints=constraints, outer_radius=2.5
        )
    )


@pytest.mark.parametrize("labels", [range(7), [0, 1, 5], [3, 3, 3]])
def test_constraints_against_the_oracle(labels):
    parents = TREES["two levels"]
    tree, params = tree_of(parents), parameters(parents, seed=3)
    groups, center = parents[1], params["center_2"].astype(float)
    present = sorted(set(labels))
    nodes = sorted({groups[i] for i in labels})
    w1 = params["surface_1"].astype(float)
    w2 = oracle_tree.eq1_projection(params["surface_2"].astype(float), center, groups)
    r1 = oracle_tree.radii(w1[nodes], [0] * len(nodes), 1)
    r2 = {
        k: oracle_tree.radii(
            [w2[i] for i in present if groups[i] == k],
            [0] * sum(groups[i] == k for i in present),
            1,
        )[0]
        for k in nodes
    }
    inner = [r2[k] for k in nodes]
    hinge = oracle_tree.hinge
    expected = {
        "C1/1": hinge(oracle_tree.constraint_1([2.5], r1)),
        "C1/2": hinge(oracle_tree.constraint_1(r1 * len(nodes), inner)),
        "C2/2": hinge(oracle_tree.constraint_2(r1 * len(nodes), center[nodes], inner)),
        "C3/2": hinge(oracle_tree.constraint_3(center[nodes], inner)),
    }
    where = dh2l.classes_present(jnp.array(list(labels)), 7)
    value, terms = jitted_r(tree, ("C1", "C2", "C3"))(params, where)
    free, plain = jitted_r(tree, ())(params, where)
    for key, term in expected.items():
        np.testing.assert_allclose(terms[key], term, rtol=1e-5, atol=1e-6, err_msg=key)
    total = sum(LAMBDAS.get(key[:2], 1.0) * term for key, term in terms.items())
    np.testing.assert_allclose(value, total, rtol=1e-5)
    assert terms["C2/2"] > 0
    assert not [key for key in plain if key.startswith("C")]
    np.testing.assert_allclose(free, sum(plain.values()), rtol=1e-6)


def test_r_pushes_collapsed_vectors_without_nan():
    """Surfaces on their centres, centres at zero: finite, whatever the batch."""
    parents = TREES["three levels"]
    tree = tree_of(parents)
    params = jax.tree.map(jnp.zeros_like, parameters(parents))
    constraints = {"C1": 1.0, "C2": 1.0, "C3": 1.0}

    @jax.jit
    def run(where):
        fn = lambda p: dh2l.hierarchical(  # noqa: E731
            p, tree, "d_hm_cos", where=where, constraints=constraints
        )
        return jax.value_and_grad(fn, has_aux=True)(params)

    for where in (np.ones(9, bool), np.zeros(9, bool), np.arange(9) == 3):
        (value, terms), gradient = run(where)
        chex.assert_tree_all_finite((value, terms, gradient))
        if not where.any():
            chex.assert_trees_all_equal(terms, jax.tree.map(jnp.zeros_like, terms))


# --- spheres ------------------------------------------------------------------------------------


@every_tree
def test_free_centres_and_absolute_positions(parents):
    tree, params = tree_of(parents), parameters(parents)
    depth = len(parents)
    levels = dh2l.sphere_levels(params, tree)
    centers = [None] + [params[f"center_{n}"] for n in range(2, depth + 1)]
    for level in range(2, depth + 1):
        vectors = oracle_tree.eq1_projection(
            params[f"surface_{level}"], params[f"center_{level}"], parents[level - 1]
        )
        np.testing.assert_allclose(levels[level - 1].vectors, vectors, atol=1e-6)
        np.testing.assert_allclose(
            absolute_centers(levels, tree)[level - 1],
            oracle_tree.absolute_centers(centers, parents, level),
            atol=1e-6,
        )
    np.testing.assert_array_equal(absolute_centers(levels, tree)[0], np.zeros((1, DIM)))
    np.testing.assert_array_equal(levels[0].vectors, params["surface_1"])
    chex.assert_trees_all_equal(dh2l.logit_vectors(levels, tree), levels[-1].vectors)


def test_absolute_logits_are_parent_plus_offset():
    parents = TREES["three levels"]
    tree, params = tree_of(parents), parameters(parents, inner=False)
    levels = dh2l.sphere_levels(params, tree, logits="absolute")
    actual = dh2l.logit_vectors(levels, tree, logits="absolute")
    for leaf in range(9):
        parent = parents[2][leaf]
        expected = (
            params["surface_3"][leaf]
            + params["center_3"][parent]
            + params["center_2"][parents[1][parent]]
        )
        np.testing.assert_allclose(actual[leaf], expected, atol=1e-6)


def test_mean_centres_leave_groups_without_a_mean():
    parents = TREES["two levels"]
    tree, params = tree_of(parents), parameters(parents, inner=False)
    del params["center_2"]
    levels = dh2l.sphere_levels(params, tree, center="mean")
    expected = oracle_tree.mean_center(params["surface_2"], parents[1], 3)
    np.testing.assert_allclose(levels[1].center, expected, atol=1e-6)
    for k in range(3):
        members = levels[1].vectors[np.array(parents[1]) == k]
        np.testing.assert_allclose(members.sum(axis=0), 0, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.6, 0.25])
def test_epsilon_centres_follow_the_parents_projection(epsilon):
    parents = TREES["three levels"]
    tree = tree_of(parents)
    params = {k: v for k, v in parameters(parents).items() if k.startswith("surface")}
    levels = dh2l.sphere_levels(params, tree, center="epsilon", epsilon=epsilon)
    projection = params["surface_1"]
    for level in (2, 3):
        center = oracle_tree.epsilon_center(projection, epsilon)
        np.testing.assert_allclose(levels[level - 1].center, center, atol=1e-6)
        groups = parents[level - 1]
        projection = oracle_tree.eq1_projection(params[f"surface_{level}"], center, groups)
        np.testing.assert_allclose(levels[level - 1].vectors, projection, atol=1e-6)


@pytest.mark.parametrize("groups", [[0, 0, 1, 1, 2, 2], [2, 0, 0, 0, 1, 2]])
def test_radii(groups):
    w = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    np.testing.assert_allclose(
        dh2l.radii(w, np.array(groups), 3), oracle_tree.radii(w, groups, 3), rtol=1e-6
    )
    where = np.array([True, False, True, True, False, True])
    kept = [i for i in range(6) if where[i]]
    masked = dh2l.radii(np.where(where[:, None], w, np.nan), np.array(groups), 3, where=where)
    for k in {groups[i] for i in kept}:
        expected = np.mean([np.linalg.norm(w[i]) for i in kept if groups[i] == k])
        np.testing.assert_allclose(masked[k], expected, rtol=1e-6)


def without(key):
    params = parameters(TREES["two levels"])
    return {k: v for k, v in params.items() if k != key}


TWO = tree_of(TREES["two levels"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dh2l.hierarchical(without("surface_2"), TWO, "d_am"), "surface_2"),
        (lambda: dh2l.hierarchical(without(""), TWO, "d_am", pairs="sibling"), "sibling.*siblings"),
        (lambda: dh2l.hierarchical(without(""), TWO, "d_am", constraints={"C4": 1.0}), "C4"),
        (lambda: dh2l.hierarchical(without(""), TWO, "d_am", weight={3: 1.0}), "3"),
        (lambda: dh2l.hierarchical(without(""), TWO, "d_am", where=jnp.ones(3, bool)), "3.*7|7.*3"),
        (lambda: dh2l.hierarchical((dh2l.Level(jnp.ones((7, 2))),), TWO, "d_am"), "1.*2|2.*1"),
        (lambda: dh2l.sphere_levels(without(""), TWO, center="fre"), "fre.*free"),
        (lambda: dh2l.sphere_levels(without(""), TWO, logits="abs"), "abs.*absolute"),
        (lambda: dh2l.sphere_levels(without("center_2"), TWO, center="free"), "center_2"),
        (lambda: dh2l.sphere_levels({"surface_2": jnp.ones((6, 2))}, TWO), "6.*7|7.*6"),
    ],
)
def test_bad_input_names_what_was_found(call, words):
    with pytest.raises(ValueError, match=words):
        call()
