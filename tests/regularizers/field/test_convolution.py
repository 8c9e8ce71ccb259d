"""Orthogonality of convolutions against their matrices on a small torus."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.helpers import assert_close

from dh2l_jax.regularizers import ocnn

# Two filters of one channel.
EXAMPLE = np.array(
    [[[1, 0, 0], [0, 2, 0], [0, 0, 1]], [[0, 1, 0], [1, 0, -1], [0, -1, 0]]], np.float64
).transpose(1, 2, 0)[:, :, None]


def matrix(K, stride, size):
    """(outputs, inputs) of a convolution on a torus of size × size, by loops over its entries."""
    kh, kw, cin, cout = K.shape
    result = np.zeros((size // stride, size // stride, cout, size, size, cin))
    places = itertools.product(range(size // stride), range(size // stride), range(kh), range(kw))
    for y, x, p, q in places:
        result[y, x, :, (y * stride + p) % size, (x * stride + q) % size] += K[p, q].T
    return result.reshape((size // stride) ** 2 * cout, -1)


def expected(K, stride=1, columns=False):
    size = -(-(2 * max(K.shape[:2]) - 1) // stride) * stride  # no copy meets another one twice
    M = matrix(K, stride, size)
    M = M.T if columns else M
    return np.sum((M @ M.T - np.eye(len(M))) ** 2) / (size // stride) ** 2


@pytest.mark.parametrize("x64", [False, True])
def test_published_values(x64):
    with jax.enable_x64(x64):
        K = jnp.asarray(EXAMPLE)
        found = jax.jit(lambda K: [ocnn(K, stride=s) for s in (1, 2, 3)])(K)
        assert {value.dtype for value in found} == {K.dtype}
    np.testing.assert_allclose(found, [104, 40, 34], rtol=1e-10 if x64 else 1e-6)
    np.testing.assert_allclose([expected(EXAMPLE, s) for s in (1, 2, 3)], found, rtol=1e-6)


CASES = {  # of the kernel; stride, columns
    (3, 3, 2, 3): [(1, False), (1, True), (2, False), (3, False)],
    (3, 3, 3, 2): [(1, False), (1, True), (2, False)],
    (2, 4, 2, 2): [(1, False), (2, False), (3, False)],
    (1, 1, 2, 4): [(1, False), (1, True)],
    (1, 1, 4, 2): [(2, False), (1, True)],
    (4, 1, 1, 4): [(1, True), (2, False)],
}
KERNELS = {shape: np.random.default_rng(0).normal(size=shape) for shape in CASES}


def test_it_is_the_matrix_of_the_convolution():
    """Value, gradient and the gradient's change; of all filters, of all but one, and of zeros."""

    @functools.partial(jax.jit, static_argnums=2)
    @functools.partial(jax.vmap, in_axes=(0, 0, None))
    def parts(K, where, options):
        calls = (functools.partial(ocnn, where=where, stride=s, columns=c) for s, c in options)
        return [jax.jvp(jax.value_and_grad(f), (K,), (jnp.ones_like(K),)) for f in calls]

    step = 1e-6
    for shape, options in CASES.items():
        K, masks = KERNELS[shape], np.ones((2, shape[-1]), bool)
        masks[1, 1] = False
        stack = np.stack([K, K, K + step, K - step, 0 * K])
        with jax.enable_x64(True):
            found = jax.tree.map(np.asarray, parts(stack, masks[[0, 1, 0, 0, 0]], tuple(options)))
        for option, ((values, slopes), (slope, change)) in zip(options, found, strict=True):
            exact = [expected(kernel, *option) for kernel in (K, K[..., masks[1]])]
            np.testing.assert_allclose(values[:2], exact, rtol=1e-10, err_msg=f"{shape} {option}")
            np.testing.assert_allclose(slope[0], (values[2] - values[3]) / (2 * step), rtol=1e-6)
            np.testing.assert_allclose(slope[0], slopes[0].sum(), rtol=1e-10)
            assert_close(change[0], (slopes[2] - slopes[3]) / (2 * step), rtol=1e-6)
            assert not slopes[1][..., 1].any()
            assert not slopes[4].any()


def test_the_smaller_side_alone():
    """Of many filters, or of many inputs, and of 1×1 kernels too."""
    for shape in ((3, 3, 2, 400), (3, 3, 400, 2), (1, 1, 2, 900)):
        K = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        with_gradient = jax.value_and_grad(ocnn)
        assert [x.dtype for x in jax.eval_shape(with_gradient, K)] == [jnp.float32, jnp.bfloat16]
        jaxpr = jax.make_jaxpr(with_gradient)(K).jaxpr
        assert max(v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars) <= np.prod(shape)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ocnn(np.ones((3, 4))), r"kernel \(kh, kw, cin, cout\), found shape \(3, 4\)"),
        (lambda: ocnn(EXAMPLE, stride=0), "stride must be ≥ 1, found 0"),
        (lambda: ocnn(EXAMPLE, stride=2, columns=True), "stride must be 1 for columns, found 2"),
        (lambda: ocnn(EXAMPLE, np.ones(3, bool)), r"shape \(2,\) like the filters, found \(3,\)"),
    ],
)
def test_what_is_wrong_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
