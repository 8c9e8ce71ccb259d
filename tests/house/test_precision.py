"""The dtype and the accuracy of every public function, with and without x64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import metrics as oracle
from oracle import tree as oracle_tree

import dh2l_jax as dh2l

PARENTS = ((0, 0), (0, 0, 1), (0, 0, 1, 2, 1, 0))
TREE = dh2l.Hierarchy.from_parents(PARENTS[1:])
GROUPS, ABOVE = np.array(PARENTS[2], np.int32), np.array(PARENTS[1], np.int32)
WHERE = np.array([True, True, False, True, True, True])
CONSTRAINTS = {"C1": 0.25, "C2": 0.5, "C3": 2.0}
C, H = np.array([-0.995, -0.3, 0.2, 0.7]), np.array([0.6, -0.2, 0.2, -0.6])
NAMES = sorted(dh2l.METRICS)
KERNEL = {"kernel": np.ones((6, 5), np.float32)}


def head(W):
    return {"surface_3": W, "center_2": W[:2], "center_3": W[2:5]}


def vectors(W):
    return oracle_tree.eq1_projection(W, W[2:5], GROUPS)


def energies(W):
    """R of the tree with all its terms."""
    P, center = vectors(W), W[2:5]
    r = oracle_tree.radii(P, GROUPS, 3)
    values = (
        oracle_tree.constraint_1([1.0] * 3, r),
        oracle_tree.constraint_2([1.0] * 3, center, r),
        oracle_tree.constraint_3(center, r, ABOVE),
    )
    hinges = map(oracle_tree.hinge, values)
    return (
        oracle.eq5_group_energy(P, GROUPS, "d_cos_hm")[0]
        + oracle.eq6_center_energy(W[:2], "d_cos_hm", [0, 0])[0]
        + oracle.eq6_center_energy(center, "d_cos_hm", ABOVE)[0]
        + sum(a * b for a, b in zip(CONSTRAINTS.values(), hinges, strict=True))
    )


def profiles(c, h):
    """Distance and energy of every metric at some pairs of similarities."""
    return [[[fn(x, y) for x, y in zip(c, h, strict=True)] for fn in oracle_of(n)] for n in NAMES]


def oracle_of(name):
    for fn in oracle.PROFILES[name]:
        yield lambda x, y, fn=fn: fn(x, y, oracle.clip_from(x), oracle.clip_from(y))


def both(profile):
    return lambda c, h: [getattr(profile, which)(c, h) for which in ("distance", "energy")]


def some(W):
    """Four pairs of similarities of the dtype of W."""
    if isinstance(W, np.ndarray):
        return C, H
    return jnp.asarray(C, W.dtype), jnp.asarray(H, W.dtype)


def cosine(u, v):
    return float(np.dot(oracle.unit(u), oracle.unit(v)))


def chord(u, v):
    return np.linalg.norm(oracle.unit(u) - oracle.unit(v))


def koleo(W):
    """By loops."""
    others = [np.delete(W, i, axis=0) for i in range(len(W))]
    nearest = [min(chord(w, v) for v in rest) for w, rest in zip(W, others, strict=True)]
    return -np.mean(np.log(nearest))


def absolute(W):
    center = oracle_tree.absolute_centers([None, W[:2], W[2:5]], PARENTS, 3)
    return np.array([center[g] + w for g, w in zip(GROUPS, vectors(W), strict=True)])


def mean_energies(W, of):
    """In all ways, of metrics of each kind."""
    return [
        of(W, "d_cos_hm", method="dense"),
        of(W, "angular2", method="tiled", block=4),
        of(W, "d_am_cos", where=WHERE),
        of(W, "cosine"),
        of(W, "d_h_bin"),
        of(W, dh2l.get_metric("d_gm_std", code="ternary", threshold=0.7)),
    ]


def expected_mean(W, metric, where=None, **_):
    if isinstance(metric, str):
        return oracle.mean_energy(W, metric, where)[0]
    options = {"kind": metric.code, "threshold": metric.threshold}
    return oracle.mean_energy(W, metric.name, where, **options)[0]


# Name → the function of a matrix (6, 5), and what NumPy makes of it.
TABLE = {
    "METRICS": (
        lambda W: [both(dh2l.METRICS[name])(*some(W)) for name in NAMES],
        lambda W: profiles(*some(W)),
    ),
    "Metric": (
        lambda W: both(dh2l.Metric("m", "m", "", lambda c, h: c * h, lambda c, h: c - h))(*some(W)),
        lambda W: [some(W)[0] * some(W)[1], some(W)[0] - some(W)[1]],
    ),
    "angle": (
        lambda W: dh2l.angle(W[0], W[1]),
        lambda W: oracle.theta(cosine(W[0], W[1]), lambda c: c),
    ),
    "exact_angle": (
        lambda W: dh2l.exact_angle(W[0], W[1]),
        lambda W: np.arccos(cosine(W[0], W[1])) / np.pi,
    ),
    "binary_sign": (dh2l.binary_sign, lambda W: [oracle.code(w) for w in W]),
    "center_energy": (
        lambda W: [dh2l.center_energy(W, "d_am", groups=g) for g in (GROUPS, None)],
        lambda W: [oracle.eq6_center_energy(W, "d_am", g)[0] for g in (GROUPS, None)],
    ),
    "code_angle": (
        lambda W: [dh2l.code_angle(W[0], W[1], prime=prime) for prime in (False, True)],
        lambda W: [
            oracle.theta_h(oracle.eq7_code_similarity(W[0], W[1]), lambda h: h, prime)
            for prime in (False, True)
        ],
    ),
    "code_similarity": (
        lambda W: [
            dh2l.code_similarity(W[0], W[1]),
            dh2l.code_similarity(W[0], W[1], code="ternary", threshold=0.7),
        ],
        lambda W: [
            oracle.eq7_code_similarity(W[0], W[1]),
            oracle.eq7_code_similarity(W[0], W[1], "ternary", 0.7),
        ],
    ),
    "containment": (
        lambda W: dh2l.containment(W[0], W[1], W[2]),
        lambda W: W[0] - (W[1] + W[2]),
    ),
    "cosine_similarity": (
        lambda W: dh2l.cosine_similarity(W[0], W[1]),
        lambda W: cosine(W[0], W[1]),
    ),
    "distance": (
        lambda W: [dh2l.distance(W[0], W[1], name) for name in ("angular2", "n_euclidean2")],
        lambda W: [
            oracle.pair(W[0], W[1], name, "distance")[0] for name in ("angular2", "n_euclidean2")
        ],
    ),
    "energy": (
        lambda W: [dh2l.energy(W[0], W[1], name) for name in ("d_hm_prime", "d_gm_cos")],
        lambda W: [oracle.pair(W[0], W[1], name)[0] for name in ("d_hm_prime", "d_gm_cos")],
    ),
    "get_metric": (
        lambda W: both(dh2l.get_metric("d_cos_gm_std", clamp="straight_through"))(*some(W)),
        lambda W: [
            [fn(x, y, *(oracle.clip_from(z, "straight_through") for z in (x, y))) for x, y in pairs]
            for fn in oracle.PROFILES["d_cos_gm_std"]
            for pairs in [list(zip(C, H, strict=True))]
        ],
    ),
    "group_energy": (
        lambda W: [
            dh2l.group_energy(W, GROUPS, "d_cos_hm"),
            dh2l.group_energy(W, jnp.asarray(GROUPS), "cosine", where=WHERE, max_present=5),
        ],
        lambda W: [
            oracle.eq5_group_energy(W, GROUPS, "d_cos_hm")[0],
            oracle.eq5_group_energy(W, GROUPS, "cosine", WHERE)[0],
        ],
    ),
    "hierarchical": (
        lambda W: dh2l.hierarchical(head(W), TREE, "d_cos_hm", constraints=CONSTRAINTS)[0],
        energies,
    ),
    "hinge": (dh2l.hinge, lambda W: oracle_tree.hinge(W.ravel())),
    "kernel_matrices": (
        lambda W: dh2l.kernel_matrices({"a": {"kernel": W}}),
        lambda W: {"a/kernel": W.T},
    ),
    "logit_vectors": (
        lambda W: [
            dh2l.logit_vectors(dh2l.sphere_levels(head(W), TREE), TREE, logits=logits)
            for logits in ("relative", "absolute")
        ],
        lambda W: [vectors(W), absolute(W)],
    ),
    "margin": (
        lambda W: dh2l.margin(W, W[:, 0], GROUPS),
        lambda W: oracle_tree.constraint_3(W, W[:, 0], GROUPS),
    ),
    "mean_energy": (
        lambda W: mean_energies(W, dh2l.mean_energy),
        lambda W: mean_energies(W, expected_mean),
    ),
    "orthogonality": (dh2l.orthogonality, oracle_tree.orthogonality),
    "pairwise": (
        lambda W: dh2l.pairwise(functools.partial(dh2l.energy, metric="d_am"), W, W[:2]),
        lambda W: [[oracle.pair(u, v, "d_am")[0] for v in W[:2]] for u in W],
    ),
    "plan": (
        lambda W: dh2l.plan(KERNEL).value({"kernel": W}),
        lambda W: oracle.mean_energy(W.T, "d_am_cos")[0],
    ),
    "REGULARIZERS": (
        lambda W: [row.function(W) for row in map(dh2l.REGULARIZERS.get, ("brock", "koleo"))],
        lambda W: [2 * np.sum(np.tril(W @ W.T, -1) ** 2), koleo(W)],
    ),
    "regularizer": (
        lambda W: [dh2l.regularizer(name)(W) for name in ("d_hm", "so", "mhe_s0")],
        lambda W: [
            oracle.mean_energy(W, "d_hm")[0],
            np.sum((W @ W.T - np.eye(len(W))) ** 2),
            -np.mean(np.log([chord(u, v) for u, v in itertools.combinations(W, 2)])),
        ],
    ),
    "rules": (
        lambda W: [
            dh2l.plan(KERNEL, dh2l.rules({"kernel": (regularizer, 0.3)})).value({"kernel": W})
            for regularizer in ("d_hm", dh2l.orthogonality)
        ],
        lambda W: [
            0.3 * oracle.mean_energy(W.T, "d_hm")[0],
            0.3 * oracle_tree.orthogonality(W.T),
        ],
    ),
    "project": (lambda W: dh2l.project(W, W[2:5], GROUPS), vectors),
    "radii": (
        lambda W: dh2l.radii(W, GROUPS, 3),
        lambda W: oracle_tree.radii(W, GROUPS, 3),
    ),
    "radius_order": (lambda W: dh2l.radius_order(W[0], W[1]), lambda W: W[0] - W[1]),
    "safe_normalize": (dh2l.safe_normalize, lambda W: [oracle.unit(w) for w in W]),
    "satisfaction": (
        lambda W: dh2l.satisfaction(W[:2]),
        lambda W: (np.mean(W[:2] >= 0), np.max(-W[:2])),
    ),
    "sphere_levels": (
        lambda W: [
            dh2l.sphere_levels(head(W), TREE)[2],
            dh2l.sphere_levels({"surface_3": W}, TREE, center="mean")[2].center,
            dh2l.sphere_levels(
                {"surface_3": W, "surface_2": W[:3], "surface_1": W[:2]}, TREE, center="epsilon"
            )[1].center,
        ],
        lambda W: [
            (vectors(W), W[2:5]),
            oracle_tree.mean_center(W, GROUPS, 3),
            oracle_tree.epsilon_center(W[:2]),
        ],
    ),
    "straight_through": (lambda W: dh2l.straight_through(W, W), lambda W: W),
    "ternary_sign": (
        lambda W: dh2l.ternary_sign(W, 0.7),
        lambda W: [oracle.code(w, "ternary", 0.7) for w in W],
    ),
    "weight_energy": (
        lambda W: dh2l.weight_energy({"a": {"kernel": W}, "b": {"kernel": W[:, :4]}}, "d_hm"),
        lambda W: sum(oracle.mean_energy(X.T, "d_hm")[0] for X in (W, W[:, :4])),
    ),
}
# `diversity` looks in NumPy.
NO_FLOATS = {"Hierarchy", "Level", "Sampled", "classes_present", "diversity"}
PROFILES = {"METRICS", "Metric", "get_metric"}  # of similarities, which are at least float32
OF_MODELS = {"kernel_matrices", "plan", "rules", "weight_energy"}  # integers are no weights
AS_GIVEN = {"kernel_matrices", "straight_through"}


def matrix(dtype):
    W = np.random.default_rng(6).normal(size=(6, 5))
    return jnp.asarray(np.round(4 * W) * 2 + 1 if dtype.startswith("int") else W).astype(dtype)


def loss(call, W):
    """The sum of all that a function returns."""
    return sum(jnp.sum(x) for x in jax.tree.leaves(call(W)))


def test_every_public_name_has_its_line():
    assert set(TABLE) | NO_FLOATS == set(dh2l.__all__)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize(
    ("dtype", "x64", "rtol"), [("float64", True, 1e-12), ("float32", False, 1e-5)]
)
def test_accuracy(name, dtype, x64, rtol):
    call, expected = TABLE[name]
    with jax.enable_x64(x64):
        W = matrix(dtype)
        found = [np.asarray(x) for x in jax.tree.leaves(jax.jit(call)(W))]
    exact = [np.float64(x) for x in jax.tree.leaves(expected(np.float64(W)))]
    assert {x.dtype.name for x in found} == {dtype}
    flat, flat_exact = (np.concatenate([np.ravel(x) for x in xs]) for xs in (found, exact))
    np.testing.assert_allclose(flat, flat_exact, rtol=0, atol=rtol * np.abs(flat_exact).max())


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("x64", [False, True])
def test_dtypes(name, x64):
    """Of values and gradients, traced alone."""
    call = TABLE[name][0]
    with jax.enable_x64(x64):
        narrow = () if name in PROFILES else ("bfloat16", "float16")
        narrow += () if name in PROFILES | OF_MODELS else ("int32",)
        for dtype in ("float32", *narrow, *(["float64"] if x64 else [])):
            wide = dtype if dtype == "float64" or name in AS_GIVEN else "float32"
            found = {x.dtype for x in jax.tree.leaves(jax.eval_shape(call, matrix(dtype)))}
            assert found == {jnp.dtype(wide)}, dtype
            if not dtype.startswith("int"):
                slope = jax.grad(functools.partial(loss, call))
                assert jax.eval_shape(slope, matrix(dtype)).dtype == dtype
