"""The hierarchical head: parameters, logits, export, and how factoring changes SGD."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dh2l_jax import Hierarchy, models
from dh2l_jax.models import HierarchicalHead, dense_kernel
from dh2l_jax.spheres import absolute_centers, sphere_levels

TREES = {
    "flat": Hierarchy.flat(5),
    "two": Hierarchy.two_level([0, 0, 1, 2, 2, 2]),
    "three": Hierarchy.from_parents(([0, 0, 1], [0, 1, 1, 2, 2], [0, 1, 2, 2, 3, 4, 4])),
}
OPTIONS = [
    {"center": center, "logits": logits, "inner_surfaces": inner}
    for center in ("free", "mean", "epsilon")
    for logits in ("relative", "absolute")
    for inner in (False, True)
]


def init(head, d=8, seed=0):
    return head.init(jax.random.key(seed), jnp.zeros((1, d)))["params"]


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_export_gives_the_same_logits(tree, options):
    head = HierarchicalHead(TREES[tree], epsilon=0.3, **options)
    params = init(head)
    x = jax.random.normal(jax.random.key(1), (7, 8))
    kernel = dense_kernel(
        {"params": {"head": params}},
        TREES[tree],
        center=options["center"],
        epsilon=0.3,
        logits=options["logits"],
    )
    chex.assert_shape(kernel, (8, TREES[tree].num_classes))
    chex.assert_trees_all_close(x @ kernel, head.apply({"params": params}, x), atol=1e-5)


@pytest.mark.parametrize("center", ["free", "mean", "epsilon"])
def test_export_tells_the_centres_from_the_parameters(center):
    head = HierarchicalHead(TREES["three"], center=center)
    params, x = init(head), jax.random.normal(jax.random.key(1), (3, 8))
    chex.assert_trees_all_close(
        x @ dense_kernel(params, TREES["three"]), head.apply({"params": params}, x), atol=1e-5
    )


def test_logits_are_features_times_surface_minus_centre():
    tree = TREES["two"]
    params = init(HierarchicalHead(tree))
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    expected = np.zeros((4, tree.num_classes))
    for i, parent in enumerate(tree.parents(2)):
        w = np.asarray(params["surface_2"])[i] - np.asarray(params["center_2"])[parent]
        expected[:, i] = x @ w
    logits = HierarchicalHead(tree).apply({"params": params}, x)
    chex.assert_trees_all_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_absolute_logits_accumulate_the_centres_of_all_ancestors():
    tree = TREES["three"]
    head = HierarchicalHead(tree, logits="absolute")
    params = init(head)
    p2, p3, p4 = (tree.parents(level) for level in (2, 3, 4))
    rows = []
    for leaf in range(tree.num_classes):
        k3 = p4[leaf]
        k2 = p3[k3]
        w = params["surface_4"][leaf] + params["center_4"][k3] + params["center_3"][k2]
        rows.append(w + params["center_2"][p2[k2]])
    chex.assert_trees_all_close(
        dense_kernel(params, tree, logits="absolute").T, jnp.stack(rows), atol=1e-6
    )
    levels = sphere_levels(params, tree, logits="absolute")
    chex.assert_trees_all_close(absolute_centers(levels, tree)[0], jnp.zeros((1, 8)))


def test_mean_and_epsilon_centres():
    tree = TREES["two"]
    surface = init(HierarchicalHead(tree, center="mean"))["surface_2"]
    mean = sphere_levels({"surface_2": surface}, tree, center="mean")[1].center
    expected = [np.mean(np.asarray(surface)[tree.parents(2) == k], axis=0) for k in range(3)]
    chex.assert_trees_all_close(mean, np.stack(expected), atol=1e-6)
    params = init(HierarchicalHead(tree, center="epsilon"))
    levels = sphere_levels(params, tree, center="epsilon", epsilon=0.6)
    chex.assert_trees_all_close(levels[1].center, 0.6 * params["surface_1"], atol=1e-6)


@pytest.mark.parametrize("tree", ["two", "three"])
def test_initial_variance(tree):
    head = HierarchicalHead(TREES[tree])
    params = init(head, d=4096)
    last = TREES[tree].num_levels
    for factor in (params[f"surface_{last}"], params[f"center_{last}"]):
        np.testing.assert_allclose(np.var(factor), 1 / (2 * 4096), rtol=0.05)
    np.testing.assert_allclose(np.var(dense_kernel(params, TREES[tree])), 1 / 4096, rtol=0.05)
    flat = init(HierarchicalHead(TREES["flat"]), d=4096)
    np.testing.assert_allclose(np.var(flat["surface_1"]), 1 / 4096, rtol=0.05)


def test_parameter_count_is_classes_plus_parents():
    cub = Hierarchy.two_level([min(i, 69) for i in range(200)])
    params = init(HierarchicalHead(cub), d=512)
    assert sum(p.size for p in jax.tree.leaves(params)) == (200 + 70) * 512


def cross_entropy(head, x, labels):
    def loss(params):
        logits = head.apply({"params": params}, x)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    return loss


def test_relative_and_absolute_heads_give_the_same_trajectory():
    """With λ = 0 and two levels the two forms differ by the sign of the centre alone."""
    tree = TREES["two"]
    key = jax.random.key(3)
    x, labels = jax.random.normal(key, (32, 8)), jax.random.randint(key, (32,), 0, 6)
    relative = HierarchicalHead(tree)
    absolute = HierarchicalHead(tree, logits="absolute")
    params = {"relative": init(relative)}
    params["absolute"] = params["relative"] | {"center_2": -params["relative"]["center_2"]}
    tx = optax.sgd(0.5, momentum=0.9)
    for name, head in (("relative", relative), ("absolute", absolute)):
        state, step = tx.init(params[name]), jax.jit(jax.grad(cross_entropy(head, x, labels)))
        for _ in range(20):
            updates, state = tx.update(step(params[name]), state)
            params[name] = optax.apply_updates(params[name], updates)
    chex.assert_trees_all_close(
        dense_kernel(params["relative"], tree),
        dense_kernel(params["absolute"], tree, logits="absolute"),
        atol=1e-5,
    )


def test_factoring_preconditions_sgd_by_identity_plus_ones():
    """One SGD step on (w_s, w_c) moves the group's W by (I + 11ᵀ) times the plain gradient."""
    tree = TREES["two"]
    key = jax.random.key(4)
    x, labels = jax.random.normal(key, (16, 8)), jax.random.randint(key, (16,), 0, 6)
    head = HierarchicalHead(tree)
    params = init(head)
    W = dense_kernel(params, tree).T

    def plain(W):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(x @ W.T, labels))

    same_group = tree.adjacency(2) @ tree.adjacency(2).T  # 11ᵀ within each group
    gradients = jax.jit(jax.grad(cross_entropy(head, x, labels)))(params)
    moved = dense_kernel(jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), tree).T
    expected = W - 0.1 * (jnp.eye(6) + same_group) @ jax.jit(jax.grad(plain))(W)
    chex.assert_trees_all_close(moved, expected, atol=1e-6)


def kernel_of(tree, **options):
    return dense_kernel(init(HierarchicalHead(TREES["two"])), tree, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: HierarchicalHead(TREES["two"], center="fre"),
            "unknown center 'fre': did you mean 'free'",
        ),
        (
            lambda: HierarchicalHead(TREES["two"], logits="relativ"),
            "unknown logits 'relativ': did you mean 'relative'",
        ),
        (
            lambda: kernel_of(Hierarchy.two_level([0, 0, 1, 2, 2, 2, 2])),
            r"'surface_2' must have shape \(7, 8\), found \(6, 8\)",
        ),
        (lambda: kernel_of(TREES["two"], center="epsilon"), "epsilon centres need 'surface_1'"),
        (
            lambda: kernel_of(Hierarchy.from_parents(([0], [0]))),
            "expected the leaves' vectors 'surface_3'",
        ),
        (
            lambda: models.create("resnet20x", num_classes=10),
            "unknown model 'resnet20x': did you mean 'resnet20'",
        ),
        (lambda: models.create("resnet20"), "expected one of hierarchy and num_classes"),
        (lambda: models.create("resnet20", num_classes=0), "num_classes must be ≥ 1, found 0"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
