"""Fixed heads: class vectors that are not trained, placed by the tree or as far apart as can be.

References:
  Liang and Davis, "Inducing Neural Collapse to a Fixed Hierarchy-Aware Frame for Reducing Mistake
    Severity", ICCV 2023: `haframe`, `cosine_loss`.
  Papyan, Han and Donoho, "Prevalence of neural collapse during the terminal phase of deep learning
    training", PNAS 2020: `etf`.
  Yang et al., "Inducing Neural Collapse in Imbalanced Learning: Do We Really Need a Learnable
    Classifier at the End of Deep Neural Network?", NeurIPS 2022: `dot_regression`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from dh2l_jax.checks import as_float, integers
from dh2l_jax.hierarchy.tree import Hierarchy

__all__ = ["cosine_loss", "dot_regression", "etf", "haframe", "haframe_gram"]


def haframe_gram(tree: Hierarchy, *, gamma: float) -> jax.Array:
    """The cosines of a hierarchy-aware frame: the nearer two classes, the larger.

        S = (1 − s) K + s,   K = exp(−γ D / D_max),   D the heights of lowest common ancestors

    s is the least number in [−1, 0] that keeps S positive semidefinite, in closed form: with
    t = 1/(1ᵀ K⁻¹ 1) it is −t/(1 − t), or −1 if t ≥ ½. (The paper's code takes the best of a grid of
    100.) A flat tree gives the simplex, cosines −1/(C − 1), unless s is cut at −1.

    Args:
      tree: the tree.
      gamma: γ > 0.

    Returns:
      (C, C), ones on the diagonal.

    Raises:
      ValueError: γ is not positive.

    >>> np.float64(haframe_gram(Hierarchy.two_level([0, 0, 1]), gamma=3)).round(3)[0].tolist()
    [1.0, -0.301, -0.591]

    Reference: Liang and Davis 2023.
    """
    return jnp.asarray(_gram(tree, gamma))


def _gram(tree: Hierarchy, gamma: float) -> np.ndarray:
    if not gamma > 0:
        raise ValueError(f"gamma must be > 0, found {gamma}")
    kernel = np.exp(-gamma * tree.lca_height() / int(tree.node_heights()[-1]))
    t = 1 / np.sum(np.linalg.solve(kernel, np.ones(len(kernel))))
    s = -1.0 if t >= 0.5 else -t / (1 - t)
    return (1 - s) * kernel + s


def haframe(tree: Hierarchy, *, gamma: float) -> jax.Array:
    """Class vectors of norm 1 with the cosines of `haframe_gram`: its symmetric square root.

    Any rotation would do. This one depends on no sign that a library of linear algebra chooses.

    Args:
      tree: the tree.
      gamma: γ > 0.

    Returns:
      (C, C), a class a row; features need C channels.

    Raises:
      ValueError: γ is not positive.

    >>> W = haframe(Hierarchy.two_level([0, 0, 1]), gamma=3)
    >>> np.float64(W @ W.T).round(3)[0].tolist()
    [1.0, -0.301, -0.591]

    Reference: Liang and Davis 2023.
    """
    values, vectors = np.linalg.eigh(_gram(tree, gamma))
    return jnp.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)


def etf(n: int, d: int) -> jax.Array:
    """The simplex equiangular tight frame: n unit vectors with all cosines −1/(n − 1).

        W = √(n/(n − 1)) H,   H (n, n − 1) the orthonormal contrasts of Helmert, then zeros

    Args:
      n: number of vectors.
      d: their length, at least n − 1.

    Returns:
      (n, d), a vector a row.

    Raises:
      ValueError: they do not fit in d dimensions.

    >>> np.float64(etf(3, 2)).round(3).tolist()
    [[0.866, 0.5], [-0.866, 0.5], [0.0, -1.0]]

    Reference: Papyan, Han and Donoho 2020.
    """
    if n < 1 or d < max(n - 1, 1):
        raise ValueError(f"expected n ≥ 1 vectors in d ≥ max(n − 1, 1), found n = {n}, d = {d}")
    W = np.zeros((n, d))
    W[0, 0] = 1  # a single vector
    for j in range(1, n):  # e₁ + ... + e_j against e_{j+1}
        W[: j + 1, j - 1] = np.append(np.ones(j), -j) * np.sqrt(n / ((n - 1) * j * (j + 1)))
    return jnp.asarray(W)


def cosine_loss(features: ArrayLike, labels: ArrayLike, W: ArrayLike, S: ArrayLike) -> jax.Array:
    """How far the cosines of features and class vectors are from those of the label's own vector.

        mean_b Σ_c (cos(w_c, x_b) − S_{c, label})²

    Args:
      features: (b, d).
      labels: (b,) int in 0..C−1.
      W: (C, d), such as `haframe`.
      S: (C, C), such as `haframe_gram`.

    >>> tree = Hierarchy.two_level([0, 0, 1])
    >>> W, S = haframe(tree, gamma=3), haframe_gram(tree, gamma=3)
    >>> abs(cosine_loss(5 * W, jnp.arange(3), W, S).round(5)).item()
    0.0

    Reference: Liang and Davis 2023.
    """
    labels = jnp.asarray(labels)
    x, W, S = _unit(features), _unit(W), as_float(S)
    integers("labels", labels, x.shape[:1], "like the features")
    return jnp.mean(jnp.sum((x @ W.T - S.T[labels]) ** 2, axis=1))


def dot_regression(features: ArrayLike, labels: ArrayLike, W: ArrayLike) -> jax.Array:
    """mean_b ½ (cos(w_label, x_b) − 1)², the loss of features against a fixed `etf`.

    Args:
      features: (b, d).
      labels: (b,) int in 0..n−1.
      W: (n, d).

    >>> W = etf(3, 2)
    >>> dot_regression(W[:1], jnp.array([1]), W).round(4).item()
    1.125

    Reference: Yang et al. 2022.
    """
    labels = jnp.asarray(labels)
    x, W = _unit(features), _unit(W)
    integers("labels", labels, x.shape[:1], "like the features")
    return jnp.mean((jnp.sum(x * W[labels], axis=1) - 1) ** 2) / 2


def _unit(x: ArrayLike) -> jax.Array:
    """Rows of norm 1; a zero row stays, and has no gradient."""
    x = as_float(x)
    scale = lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    x = x / jnp.where(scale > 0, scale, 1)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return jnp.where(square > 0, x * lax.rsqrt(jnp.where(square > 0, square, 1)), 0)
