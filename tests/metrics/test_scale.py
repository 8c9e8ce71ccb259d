"""Large sums, read off what is traced and compiled: memory, products, tiles; few of many."""

import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from support.helpers import assert_close, every_metric

import dh2l_jax as dh2l

MB = 2**20
FLOAT = 4
# One of each kind: two similarities, an affine part, c alone, two arccos, a dead zone.
KINDS = {
    "two similarities": "d_cos_hm",
    "affine in h": "d_am",
    "c alone": "angular2",
    "two arccos": "d_hm_prime",
    "dead zone": dh2l.get_metric("d_cos_hm", code="ternary", threshold=0.7),
}
every_kind = pytest.mark.parametrize("metric", KINDS.values(), ids=KINDS.keys())
LARGE = [(10_000, 512), (21_841, 2048), (100_000, 512)]


@pytest.fixture
def optimised():
    """The suite compiles without most optimisations, on which the memory of a program depends."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def shape(*size, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(size, dtype)


def value_and_gradient(metric, **options):
    return jax.value_and_grad(functools.partial(dh2l.mean_energy, metric=metric, **options))


def compiled(fn, *shapes):
    return jax.jit(fn).lower(*shapes).compile()


def temporaries(fn, *shapes):
    """Bytes beside the arguments and the results."""
    return compiled(fn, *shapes).memory_analysis().temp_size_in_bytes


def inner(eqn):
    """The jaxprs inside an equation: bodies of loops, branches (those for CPU), calls."""
    is_jaxpr = lambda x: hasattr(x, "eqns")  # noqa: E731
    params = dict(eqn.params)
    if platforms := params.get("branches_platforms"):
        at = next(i for i, names in enumerate(platforms) if names is None or "cpu" in names)
        params["branches"] = params["branches"][at]
    for value in jax.tree.leaves(params, is_leaf=is_jaxpr):
        if is_jaxpr(value):
            yield getattr(value, "jaxpr", value)


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for part in inner(eqn):
            yield from equations(part)


def largest(fn, *shapes):
    """Numbers in the largest array of a traced function, whatever loop it is in."""
    found = equations(jax.make_jaxpr(fn)(*shapes).jaxpr)
    return max(math.prod(v.aval.shape) for eqn in found for v in eqn.outvars)


# --- memory -------------------------------------------------------------------------------------


@every_kind
def test_ten_thousand_rows_need_16_mb(optimised, metric):
    assert temporaries(value_and_gradient(metric), shape(10_000, 512)) <= 16 * MB


@pytest.mark.parametrize("size", LARGE[1:], ids=["ImageNet-21k head", "100,000 classes"])
@pytest.mark.parametrize("metric", ["d_cos_hm", "d_am", "d_hm_prime"])
def test_the_largest_heads_need_64_mb(optimised, metric, size):
    """Beside W and its gradient."""
    assert temporaries(value_and_gradient(metric), shape(*size)) <= 64 * MB


@pytest.mark.parametrize("metric", ["cosine", "d_h_bin", "d_am_cos_prime"])
def test_the_closed_form_needs_3_mb(optimised, metric):
    """Of a head whose gradient alone has 171 MB."""
    assert temporaries(value_and_gradient(metric), shape(21_841, 2048)) <= 3 * MB


def test_a_sample_of_a_million_rows_needs_32_mb(optimised):
    """Of a head whose gradient alone has 8 GB, and a mask."""
    sample = dh2l.Sampled(tiles=64, rows=128)

    def energy(W, key, where):
        options = {"where": where, "half_space": True}
        return dh2l.mean_energy(W, "d_cos_hm", sample=sample, key=key, **options)

    n, key = 1_000_000, jax.random.key(0)
    shapes = shape(n, 2048), shape(*key.shape, dtype=key.dtype), shape(n, dtype=bool)
    assert temporaries(jax.value_and_grad(energy), *shapes) <= 32 * MB


def test_squares_of_c_need_the_columns(optimised):
    """Of a head whose gradient alone has 45 MB: d×d, and two blocks of rows."""
    n, d = 21_841, 512
    most = FLOAT * (3 * d * d + 3 * 1024 * d)
    assert temporaries(value_and_gradient("cosine2"), shape(n, d)) <= most


GROUPS = {
    "of ten": np.arange(10_000) % 1000,
    "of random size": np.random.default_rng(0).integers(1000, size=10_000),
}


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize(("max_present", "limit"), [(512, 16), (None, 32)])
@pytest.mark.parametrize("metric", ["d_cos_hm", "cosine"])
def test_ten_thousand_classes_in_a_thousand_groups(optimised, metric, max_present, limit, groups):
    """W without the rows left out alone has 20 MB; the goal is 64."""

    def fn(W, where):
        return dh2l.group_energy(W, groups, metric, where=where, max_present=max_present)

    shapes = shape(10_000, 512), shape(10_000, dtype=bool)
    assert temporaries(jax.value_and_grad(fn), *shapes) <= limit * MB
    assert temporaries(fn, *shapes) <= limit * MB


@pytest.mark.parametrize("max_present", [512, None])
def test_a_tree_of_ten_thousand_classes(optimised, max_present):
    """The vectors relative to their centres and the gradient of those alone have 40 MB."""
    tree = dh2l.Hierarchy.two_level(np.arange(10_000) % 1000)
    params = {
        "surface_1": shape(1000, 512),
        "surface_2": shape(10_000, 512),
        "center_2": shape(1000, 512),
    }

    def fn(params, where):
        value, _ = dh2l.hierarchical(params, tree, "d_cos_hm", where=where, max_present=max_present)
        return value

    used = temporaries(jax.value_and_grad(fn), params, shape(10_000, dtype=bool))
    assert used <= 76 * MB


@every_metric
def test_auto_never_builds_a_square_of_many_rows(name):
    for n, d in (LARGE[0], LARGE[-1]):
        assert largest(value_and_gradient(name), shape(n, d)) <= n * d + n


@pytest.mark.parametrize("n", [900, 1100])
@pytest.mark.parametrize("method", ["auto", "dense", "tiled"])
@pytest.mark.parametrize("name", ["d_cos_hm", "d_am", "cosine"])
def test_explain_tells_the_truth(name, method, n):
    """The method named is the one whose intermediates are there: panels of n×n for dense alone."""
    texts = []

    def fn(W):
        value, text = dh2l.mean_energy(W, name, method=method, block=64, explain=True)
        texts.append(text)
        return value

    built = largest(fn, shape(n, 4))
    assert (built >= n * n // 2) == texts[0].startswith("dense")
    assert texts[0].startswith(("closed", "dense", "tiled") if method == "auto" else method)


# --- arithmetic ---------------------------------------------------------------------------------


def products(jaxpr):
    """Multiply-adds times 2 of the matrix products that the outputs depend on."""
    needed, total = set(jaxpr.outvars), 0
    for eqn in reversed(jaxpr.eqns):
        if not needed.intersection(eqn.outvars):
            continue
        needed.update(v for v in eqn.invars if not hasattr(v, "val"))
        if eqn.primitive.name == "dot_general":
            (axes, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in axes)
            total += 2 * depth * math.prod(eqn.outvars[0].aval.shape)
        total += sum(products(part) for part in inner(eqn))
    return total


def loops(jaxpr):
    """Bodies of the loops that multiply matrices."""
    found = (eqn for eqn in equations(jaxpr) if eqn.primitive.name in ("while", "scan"))
    return [part for eqn in found for part in inner(eqn) if products(part)]


def products_of_a_tile(fn, *shapes):
    """Of the innermost of those loops."""
    bodies = loops(jax.make_jaxpr(fn)(*shapes).jaxpr)
    return [products(body) for body in bodies if not loops(body)]


@pytest.mark.parametrize(
    ("metric", "grams"),
    [("d_cos_hm", 2), ("d_gm_cos_prime", 2), ("angular2", 1), ("d_am", 1), ("d_am_cos", 1)],
)
def test_a_tile_costs_three_products_a_similarity(metric, grams):
    """Its similarities, and the gradient of either side, of one on the diagonal.

    The closed part has only vectors.
    """
    block, d = 128, 640
    fn = value_and_gradient(metric, method="tiled", block=block)
    one = 2 * block * block * d
    assert products_of_a_tile(fn, shape(512, d)) == [grams * 2 * one, grams * 3 * one]


def test_the_value_alone_costs_one_product_a_similarity(optimised):
    """In each of two loops; the compiler drops the gradient that is formed with it."""
    fn = functools.partial(dh2l.mean_energy, metric="d_am_prime", method="tiled", block=96)
    assert len(re.findall(r" dot\(", compiled(fn, shape(512, 640)).as_text())) == 2 * 2


@pytest.mark.parametrize("metric", ["d_cos_hm", "d_gm_cos_prime"])
def test_a_dense_sum_multiplies_the_upper_panels_only(metric):
    """Of the 4n²d of two whole Gram matrices and the 4n²d of the gradient, 5/8 and all are left.

    Of codes that are too short to be counted.
    """
    n, d = 2048, 512
    jaxpr = jax.make_jaxpr(value_and_gradient(metric, method="dense"))(shape(n, d)).jaxpr
    assert products(jaxpr) == 1.625 * 4 * n * n * d


def test_codes_are_counted_on_cpu_instead_of_multiplied(optimised):
    """Which leaves the panels of one Gram matrix, n²d·5/4, and 4n²d of the gradient."""
    n, d = 2048, 4608
    cost = compiled(value_and_gradient("d_cos_hm", method="dense"), shape(n, d)).cost_analysis()
    assert 5.25 <= cost["flops"] / (n * n * d) <= 5.4


@pytest.mark.parametrize(("n", "block"), [(12, 3), (13, 3), (5, 5), (7, 1)])
@pytest.mark.parametrize("gradient", [False, True])
def test_tiles_of_the_upper_triangle_are_visited_once(n, block, gradient):
    """k(k + 1)/2 of them, counted by the profile; with the gradient no tile is looked at again."""
    visits = []

    def counted(c, h):
        jax.debug.callback(lambda: visits.append(1))
        return c * h

    fn = functools.partial(dh2l.mean_energy, metric=counted, method="tiled", block=block)
    fn = jax.grad(fn) if gradient else fn
    jax.block_until_ready(jax.jit(fn)(np.random.default_rng(0).normal(size=(n, 4))))
    jax.effects_barrier()
    k = -(-n // block)
    assert len(visits) == k * (k + 1) // 2


# --- one trace for all weights, masks and batches -----------------------------------------------

MESH = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
STEPS = {
    "closed": lambda W, where: dh2l.mean_energy(W, "cosine", where=where),
    "dense": lambda W, where: dh2l.mean_energy(W, "d_am", where=where, half_space=True),
    "tiled": lambda W, where: dh2l.mean_energy(W, "d_gm", where=where, method="tiled", block=4),
    "ring": lambda W, where: dh2l.mean_energy(W, "d_gm", where=where, mesh=MESH),
    "groups": lambda W, where: dh2l.group_energy(
        W, np.arange(13) % 4, "d_am", where=where, max_present=3
    ),
}


@pytest.mark.parametrize("fn", STEPS.values(), ids=STEPS.keys())
def test_new_weights_and_masks_are_not_traced_again(fn):
    chex.clear_trace_counter()
    step = jax.jit(jax.value_and_grad(chex.assert_max_traces(fn, n=1)))
    generator, values = np.random.default_rng(0), set()
    for count in (3, 2, 3):
        where = np.isin(np.arange(13), generator.choice(13, count, replace=False))
        W = generator.normal(size=(13, 4)).astype(np.float32)
        values.add(float(step(jnp.asarray(W), jnp.asarray(where))[0]))
    assert len(values) >= 2


# --- a batch holds few of many classes ----------------------------------------------------------

CLASSES, DIM = 61, 6
PARENTS = np.searchsorted([0, 1, 4, 7], np.arange(CLASSES) ** 2 % 9)  # 21, 13, 13, 14 a group
BATCHES = {
    "as many as allowed": np.arange(0, 60, 5),
    "neighbours": np.arange(40, 52),
    "the last and one": np.array([60, 3]),
    "siblings": np.flatnonzero(PARENTS == 0)[:12],
    "one class": np.array([17]),
    "none": np.array([], int),
}
MOST = 12


def weights(seed, *size):
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def masks():
    """The named batches, and random ones of up to as many classes as are allowed."""
    generator = np.random.default_rng(5)
    chosen = [generator.choice(CLASSES, generator.integers(1, MOST + 1), False) for _ in range(6)]
    return [np.isin(np.arange(CLASSES), batch) for batch in [*BATCHES.values(), *chosen]]


def same_with_few(fn, x, batches):
    """fn(x, where, max_present) and its gradient, with and without the bound; often not zero."""
    both = [
        jax.jit(jax.value_and_grad(functools.partial(fn, max_present=most)))
        for most in (MOST, None)
    ]
    nonzero = 0
    for where in batches:
        (value, gradient), (expected, slopes) = (f(x, where) for f in both)
        np.testing.assert_allclose(value, expected, rtol=3e-6, atol=1e-6)
        jax.tree.map(functools.partial(assert_close, atol=1e-6), gradient, slopes)
        nonzero += abs(expected) > 1e-3
    assert nonzero >= len(batches) // 2


@pytest.mark.parametrize("name", ["cosine", "d_am", "d_cos_hm"])
@pytest.mark.parametrize("half_space", [False, True])
def test_group_energy_of_few(name, half_space):
    def fn(W, where, max_present):
        return dh2l.group_energy(
            W, PARENTS, name, where=where, max_present=max_present, half_space=half_space
        )

    same_with_few(fn, weights(0, CLASSES, DIM), masks())


@pytest.mark.parametrize("groups", [PARENTS, None], ids=["siblings", "all"])
def test_center_energy_of_few(groups):
    def fn(C, where, max_present):
        return dh2l.center_energy(C, "d_hm", groups=groups, where=where, max_present=max_present)

    same_with_few(fn, weights(1, CLASSES, DIM), masks())


def test_hierarchical_of_few():
    tree = dh2l.Hierarchy.from_parents(([0, 1, 1, 0], PARENTS))
    assert tree.num_classes == CLASSES
    params = {
        "surface_3": weights(2, CLASSES, DIM),
        "center_3": weights(3, tree.size(2), DIM),
        "center_2": weights(4, tree.size(1), DIM),
    }

    def fn(params, where, max_present):
        return dh2l.hierarchical(params, tree, "d_am", where=where, max_present=max_present)[0]

    same_with_few(fn, params, masks())


def test_a_batch_of_32_of_a_thousand_classes():
    """And of a hundred groups, of which no more are gathered than there are in the batch."""
    tree = dh2l.Hierarchy.two_level(np.arange(1000) // 10)
    params = {"surface_2": weights(5, 1000, DIM), "center_2": weights(6, 100, DIM)}
    generator = np.random.default_rng(7)

    def fn(params, labels, max_present):
        where = dh2l.classes_present(labels, 1000)
        return dh2l.hierarchical(params, tree, "d_gm", where=where, max_present=max_present)[0]

    few, all_ = (
        jax.jit(jax.value_and_grad(functools.partial(fn, max_present=most))) for most in (32, None)
    )
    for pool in (1000, 1000, 40):
        labels = generator.integers(0, pool, 32)
        (value, gradient), (expected, slopes) = few(params, labels), all_(params, labels)
        np.testing.assert_allclose(value, expected, rtol=3e-6)
        jax.tree.map(assert_close, gradient, slopes)
        assert np.count_nonzero(np.abs(gradient["surface_2"]).max(axis=1)) <= 32
