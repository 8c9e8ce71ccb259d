"""Fixed heads: the cosines of the frames, and the losses of features against them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import learn as oracle
from support.trees import EVEN, TREES, hierarchy

from dh2l_jax.hierarchy import frames

T = hierarchy(EVEN)
# γ → row of S of the class 0 of the tree T.
GOLDEN = {
    3: [1, 0.0932389726, -0.2403397674, -0.3630565279, -0.3630565279],
    1: [1, 0.4330626211, 0.0268342381, -0.2642411177, -0.2642411177],
}


@pytest.mark.parametrize(("dtype", "tol"), [(np.float64, 1e-10), (np.float32, 1e-6)])
def test_published_values(dtype, tol):
    x = np.array([[1, 2, 2, 0, 0], [0, 0, 0, 3, 4]], dtype)
    with jax.enable_x64(dtype is np.float64):
        for gamma, row in GOLDEN.items():
            S = frames.haframe_gram(T, gamma=gamma)
            np.testing.assert_allclose(S[0], row, atol=tol)
            assert (
                S.dtype == frames.haframe(T, gamma=gamma).dtype == frames.etf(3, 2).dtype == dtype
            )
        S, W = frames.haframe_gram(T, gamma=3), jnp.eye(5, dtype=dtype)
        loss = jax.jit(frames.cosine_loss)(x, np.array([0, 3]), W, S)
        assert loss.dtype == dtype
        np.testing.assert_allclose(loss, 1.4572428991, rtol=tol)
        h, w = np.array([[1, 2, 2]], dtype), np.array([[2, -1, 0]], dtype)
        np.testing.assert_allclose(frames.dot_regression(h, np.array([0]), w), 0.5, rtol=tol)


@pytest.mark.parametrize("classes", TREES.values(), ids=TREES)
@pytest.mark.parametrize("gamma", [0.3, 1, 3, 10])
def test_a_frame_has_the_cosines_of_the_tree(classes, gamma):
    """s against bisection on the least eigenvalue; W Wᵀ = S, so S is positive semidefinite."""
    tree = hierarchy(classes)
    with jax.enable_x64(True):
        made = frames.haframe_gram(tree, gamma=gamma), frames.haframe(tree, gamma=gamma)
        S, W = jax.device_get(made)
    np.testing.assert_allclose(S, oracle.frame_gram(classes, gamma), atol=1e-9)
    np.testing.assert_allclose(W @ W.T, S, atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(W, axis=1), 1, atol=1e-7)
    np.testing.assert_allclose(W, np.transpose(W), atol=1e-12)


def test_a_flat_tree_gives_the_simplex():
    tree = hierarchy([(name,) for name in "abcde"])
    for gamma in (2, 5):  # where s is not cut
        W = frames.haframe(tree, gamma=gamma)
        np.testing.assert_allclose(W @ W.T, (5 * np.eye(5) - 1) / 4, atol=1e-6)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 3), (2, 1), (3, 2), (4, 7), (50, 49)])
def test_a_simplex(n, d):
    with jax.enable_x64(True):
        W = jax.device_get(frames.etf(n, d))
    assert W.shape == (n, d)
    cosines = np.where(np.eye(n), 1, -1 / max(n - 1, 1))
    np.testing.assert_allclose(W @ W.T, cosines, atol=1e-14)


def test_losses_of_features():
    """Their minimum, their invariance to scale, and no gradient that is not finite."""
    tree = hierarchy(TREES["uneven"])
    W, S = frames.haframe(tree, gamma=3), frames.haframe_gram(tree, gamma=3)
    y = np.arange(6)
    x = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    for fn in (functools.partial(frames.cosine_loss, S=S), frames.dot_regression):
        call = jax.jit(jax.value_and_grad(lambda x, fn=fn: fn(x, y, W=W)))
        assert call(7 * W)[0] < 1e-12 < 0.1 < call(x)[0]
        np.testing.assert_allclose(call(1e3 * x)[0], call(x)[0], rtol=1e-5)
        np.testing.assert_allclose(1e30 * call(1e30 * x)[1], call(x)[1], rtol=1e-4, atol=1e-6)
        assert np.isfinite(call(np.zeros_like(x))[1]).all()
        assert jax.eval_shape(call, x.astype(jnp.bfloat16))[0].dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frames.haframe(T, gamma=0), "gamma must be > 0, found 0"),
        (lambda: frames.etf(4, 2), r"d ≥ max\(n − 1, 1\), found n = 4, d = 2"),
        (lambda: frames.etf(0, 2), "found n = 0"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
