"""Products of codes, counted on their bits, are matrix products, derivatives included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dh2l_jax.metrics import bits
from dh2l_jax.numerics import binary_sign

SIZES = [(128, 128, 1024), (130, 200, 1025), (128, 131, 1500), (129, 128, 2048), (200, 128, 4608)]


def codes(*size, seed=0):
    return np.random.default_rng(seed).choice(np.float32([-1, 1]), size)


@pytest.fixture(scope="module")
def product():
    return jax.jit(bits.code_products)


@pytest.mark.parametrize(("n", "m", "d"), SIZES)
def test_counts_are_the_product(n, m, d, product):
    S, T = codes(n, d), codes(m, d, seed=1)
    T[:64] = S[:64]
    T[64:80] = -S[64:80]
    found = product(S, T)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, S.astype(int) @ T.T.astype(int))


@pytest.mark.parametrize("d", [64, 144, 288, 512, 576, 2048, 4608, bits.MAX_LENGTH])
@pytest.mark.parametrize("values", [(-1, 1), (-1, 0, 1)], ids=["binary", "ternary"])
def test_one_pass_of_bfloat16_is_the_product(d, values):
    """What accelerators compute, in every bit; the first sums are the largest that there are."""
    S = np.ones((2, d), np.float32)
    S[1, :3] = values[0], values[1], values[0]
    if d < bits.MAX_LENGTH:
        S = np.concatenate([S, np.random.default_rng(0).choice(np.float32(values), (30, d))])
    expected = np.einsum("id,jd->ij", S, S, dtype=np.float64)
    for of in (bits._in_one_pass, bits._multiplied):
        np.testing.assert_array_equal(jax.jit(of)(S, S), expected)


def test_three_pieces_are_as_exact_as_float32():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(96, 640)) * np.exp(4 * rng.normal(size=(96, 1)))).astype(np.float32)
    S = codes(640, 256)
    exact = x.astype(np.float64) @ S
    largest = np.abs(exact).max(axis=1, keepdims=True)
    pieces, single = (
        np.abs(jax.jit(of)(x, S) - exact).max() / largest.min()
        for of in (bits._in_pieces, bits._product)
    )
    assert np.max(np.abs(jax.jit(bits._in_pieces)(x, S) - exact) / largest) <= 4e-7
    assert pieces <= 2 * single


@pytest.mark.parametrize(
    ("platform", "passes"), [("cpu", [0, 0]), ("cuda", [1, 1]), ("tpu", [1, 1])], ids=str
)
def test_accelerators_multiply_codes_in_bfloat16(platform, passes):
    """Of codes with codes, and of slopes with many codes: one product each, summed in float32."""
    S = jax.ShapeDtypeStruct((512, 1024), jnp.float32)
    x = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    found = []
    for fn, args in [(bits.code_products, (S, S)), (bits.times_codes, (x, S))]:
        traced = jax.jit(fn).trace(*args)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line]
        found.append(sum(line.count("bf16>") == 2 and "xf32>" in line for line in products))
    assert found == passes


def test_long_codes_are_counted_and_short_or_few_multiplied():
    def multiplies(n, d):
        S = jax.ShapeDtypeStruct((n, d), jnp.float32)
        text = jax.jit(bits.code_products).lower(S, S).compile().as_text()
        return " dot(" in text or "matmul" in text

    assert not multiplies(128, 1024)
    assert multiplies(127, 1024)
    assert multiplies(128, 1023)


def test_a_row_of_nan_is_nan_and_no_other(product):
    S, T = codes(128, 1024), codes(128, 1024, seed=1)
    S[3], T[5] = np.nan, np.nan
    found = product(S, T)
    expected = np.zeros((128, 128), bool)
    expected[3], expected[:, 5] = True, True
    np.testing.assert_array_equal(np.isnan(found), expected)


def test_a_batch(product):
    S, T = codes(2, 128, 1100), codes(2, 128, 1100, seed=1)
    batched = jax.jit(jax.vmap(bits.code_products))(S, T)
    for i in range(2):
        np.testing.assert_array_equal(batched[i], product(S[i], T[i]))


def test_derivatives_are_those_of_the_product():
    """Forward, backward through the estimator that made the codes, and a second time."""
    rng = np.random.default_rng(0)
    U, V = (rng.normal(size=(128, 1024)).astype(np.float32) * 0.1 for _ in range(2))
    S, T = codes(128, 1024), codes(128, 1024, seed=1)
    direction = rng.normal(size=S.shape).astype(np.float32)
    weights = rng.normal(size=(128, 128)).astype(np.float32)

    def derivatives(product):
        def square(S, T):
            return jnp.sum(weights * product(S, T) ** 2)

        def along(S, T):
            return jnp.vdot(jax.grad(square)(S, T), direction)

        def fn(U, V, S, T):
            estimated = jax.grad(lambda U, V: square(binary_sign(U), binary_sign(V)), (0, 1))
            tangent = jax.jvp(lambda S: product(S, T), (S,), (direction,))[1]
            return *estimated(U, V), tangent, *jax.grad(along, (0, 1))(S, T)

        return jax.jit(fn)(U, V, S, T)

    counted = derivatives(bits.code_products)
    multiplied = derivatives(lambda S, T: jnp.dot(S, T.T, precision="highest"))
    for found, expected in zip(counted, multiplied, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
        assert np.abs(expected).max() > 10
