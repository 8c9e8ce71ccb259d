"""How diverse the weight vectors of a model are, beside random vectors of the same number and size.

A measurement on the host in float64: exact, in tiles, with no training clip and no derivative.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import linalg, special

__all__ = ["Figures", "diversity", "figures", "random_density"]

TILE = 1024  # rows of a tile: its angles take 8 MB
NEAR = 1e-6  # 1 − |c| below which arccos would lose digits
DUPLICATE = np.radians(0.01)
DEAD = 1e-4  # of the longest vector of the layer
DRAWS, QUANTILES = 32, 2000  # what the chance of the rank, and of the smallest angle, is taken from
# A layer is marked where one of these is so many deviations and so large a share below chance.
MARKING, DEVIATIONS, SHARE = ("mean", "nearest", "rank"), 6.0, 0.9


class Figures(NamedTuple):
    """How diverse the vectors of a layer are; angles in degrees, None where there is no pair.

    The angle of two random vectors has the density ∝ sin^(d−2) θ: mean 90°, variance ψ'(d/2)/2 in
    radians². All angles of random vectors are pairwise independent, so that the chance of the mean
    and of the signs is exact. That of the smallest and of the nearest takes them as independent,
    that of the rank is drawn from the bidiagonal form of a Gaussian matrix, with a fixed seed.

    Attributes:
      n: vectors of a matrix.
      d: their size.
      matrices: how many the layer has, of heads or of scanned layers, say; pairs lie within one.
      mean: angle over all pairs.
      smallest: angle of all pairs.
      nearest: mean over the vectors of the angle to the nearest other one.
      signs: share of the coordinates in which two vectors have the same sign, mean over pairs.
      rank: effective rank, exp of the entropy of σ_k / Σσ, σ the singular values (Roy, Vetterli).
      duplicates: vectors within 0.01° of an earlier one.
      dead: vectors shorter than 10⁻⁴ of the longest; they make no pairs.
      chance: name → mean and standard deviation of that figure for random vectors.
      z: name → (figure − mean) / deviation; None where it has none.
      histogram: pairs by their angle, in 180 bins of 1°.
    """

    n: int
    d: int
    matrices: int
    mean: float | None
    smallest: float | None
    nearest: float | None
    signs: float | None
    rank: float
    duplicates: int
    dead: int
    chance: dict[str, tuple[float, float]]
    z: dict[str, float | None]
    histogram: tuple[int, ...]

    def __repr__(self) -> str:
        """Without the histogram.

        >>> figures(np.eye(3))
        Figures(3 × 3: mean 90.0°, smallest 90.0°, nearest 90.0°, rank 3.0, 0 duplicates, 0 dead)
        """
        angles = ((name, getattr(self, name)) for name in ("mean", "smallest", "nearest"))
        shown = [f"{name} {value:.1f}°" for name, value in angles if value is not None]
        counts = f"{self.duplicates} duplicates, {self.dead} dead"
        return (
            f"Figures({self.n} × {self.d}: {', '.join([*shown, f'rank {self.rank:.1f}', counts])})"
        )

    @property
    def less_diverse(self) -> bool:
        """Far less than chance: `mean`, `nearest` or `rank` ≤ 90 % of its, and ≥ 6 deviations.

        The rank is asked from 8 vectors of 8 on: its law has a long tail before.
        """
        return any(
            (self.z.get(name) or 0) <= -DEVIATIONS
            and getattr(self, name) <= SHARE * self.chance[name][0]
            for name in MARKING
            if name != "rank" or min(self.n, self.d) >= 8
        )


def diversity(plan: Any, params: Any) -> dict[str, Figures]:
    """How diverse the vectors of each layer are that a plan looks at: path → `Figures`.

    For looking at a model, not for training: it runs on the host, outside jit, in float64. Angles
    are exact, 0° for duplicates, where `dh2l.angle` has the training clip.

    Args:
      plan: from `dh2l.plan`.
      params: what the plan was made for.

    Raises:
      ValueError: a layer holds NaN or infinity.

    >>> import jax.numpy as jnp
    >>> import dh2l_jax as dh2l
    >>> params = {"dense": {"kernel": jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])}}
    >>> row = diversity(dh2l.plan(params), params)["dense/kernel"]
    >>> row.n, row.d, row.smallest, row.duplicates
    (3, 2, 0.0, 1)

    Reference: Cai, Fan, Jiang, "Distributions of angles in random packing on spheres", 2013; Roy,
    Vetterli, "The effective rank", 2007.
    """
    matrices: Mapping[str, Any] = plan.matrices(params)
    found = {}
    for path, matrix in matrices.items():
        try:
            found[path] = figures(jax.device_get(matrix))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return found


class _Sums(NamedTuple):
    """What is added up over the pairs of one matrix.

    Attributes:
      live: vectors that are not dead.
      angles: Σ θ.
      nearest: (live,) radians.
      equal: Σ over pairs of the coordinates with the same sign.
      rank: effective.
      duplicates: vectors that repeat an earlier one.
      histogram: (180,).
    """

    live: int
    angles: float
    nearest: np.ndarray
    equal: float
    rank: float
    duplicates: int
    histogram: np.ndarray

    @property
    def pairs(self) -> int:
        return self.live * (self.live - 1) // 2


def figures(W: np.ndarray) -> Figures:
    """The figures of a matrix (n, d), or of several (…, n, d).

    Raises:
      ValueError: there are no two axes, or NaN or infinity.

    >>> figures(np.eye(3)).mean
    90.0
    """
    W = np.asarray(W)
    if W.ndim < 2 or 0 in W.shape[:-2]:
        raise ValueError(f"expected a matrix (n, d) with a vector a row, found shape {W.shape}")
    n, d = W.shape[-2:]
    sums = [_sums(matrix) for matrix in W.reshape(math.prod(W.shape[:-2]), n, d)]
    pairs, live = sum(s.pairs for s in sums), [s.live for s in sums]
    found: dict[str, Any] = dict.fromkeys(("mean", "smallest", "nearest", "signs"))
    if pairs:
        nearest = np.concatenate([s.nearest for s in sums if s.pairs])
        found["mean"] = float(np.degrees(sum(s.angles for s in sums) / pairs))
        found["smallest"] = float(np.degrees(nearest.min()))
        found["nearest"] = float(np.degrees(nearest.mean()))
        found["signs"] = sum(s.equal for s in sums) / (pairs * d)
    found["rank"] = float(np.mean([s.rank for s in sums]))
    chance = _chance(n, d, tuple(live)) if d else {}
    return Figures(
        n=n,
        d=d,
        matrices=len(sums),
        **found,
        duplicates=sum(s.duplicates for s in sums),
        dead=n * len(sums) - sum(live),
        chance=chance,
        z={
            name: (found[name] - mean) / deviation if deviation > 1e-12 else None
            for name, (mean, deviation) in chance.items()
        },
        histogram=tuple(np.sum([s.histogram for s in sums], axis=0).tolist()),
    )


def _sums(W: np.ndarray) -> _Sums:
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(W.astype(np.float64), axis=1)
    if not np.isfinite(norms).all():
        raise ValueError(f"{np.sum(~np.isfinite(norms))} of {len(norms)} vectors are not finite")
    live = norms > DEAD * norms.max(initial=0)
    rank = effective_rank(W)
    W, norms = W[live], norms[live]
    n, d = W.shape
    angles, histogram = 0.0, np.zeros(180, np.int64)
    nearest, repeats = np.full(n, np.inf), np.zeros(n, bool)
    for row, column, tile in _tiles(W, norms):
        upper = np.triu(np.ones(tile.shape, bool), 1) if row == column else slice(None)
        theta = tile[upper]
        angles += theta.sum()
        histogram += np.bincount(np.minimum(np.degrees(theta).ravel(), 179).astype(int), None, 180)
        if row == column:
            tile[np.tril_indices(len(tile))] = np.inf
        rows = slice(row, row + tile.shape[0])
        columns = slice(column, column + tile.shape[1])
        np.minimum(nearest[rows], tile.min(1), out=nearest[rows])
        np.minimum(nearest[columns], tile.min(0), out=nearest[columns])
        repeats[columns] |= (tile < DUPLICATE).any(0)
    ones = np.where(W >= 0, 1, -1).sum(0, dtype=np.int64)
    # Σ_{i<j} s_i·s_j = (‖Σ s_i‖² − nd) / 2, of which each coordinate that agrees gives +1.
    agree = (np.sum(ones**2) - n * d) / 2
    equal = (agree + n * (n - 1) / 2 * d) / 2
    return _Sums(n, angles, nearest, float(equal), rank, int(repeats.sum()), histogram)


def _tiles(W: np.ndarray, norms: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """First row, first column and the angles, of each tile on or above the diagonal."""

    def unit(start: int) -> np.ndarray:
        part = slice(start, start + TILE)
        return W[part].astype(np.float64) / norms[part, None]

    for row in range(0, len(W), TILE):
        u = unit(row)
        for column in range(row, len(W), TILE):
            v = u if row == column else unit(column)
            c = np.clip(u @ v.T, -1, 1)
            theta = np.arccos(c)
            near = np.nonzero(np.abs(c) > 1 - NEAR)
            step = max(1, TILE**2 // W.shape[1])  # a chunk of pairs takes no more than a tile
            for start in range(0, len(near[0]), step):
                i, j = (index[start : start + step] for index in near)
                apart, together = (np.linalg.norm(u[i] + s * v[j], axis=1) for s in (-1, 1))
                theta[i, j] = 2 * np.arctan2(apart, together)
            yield row, column, theta


def effective_rank(W: np.ndarray) -> float:
    """exp(−Σ p log p), p = σ / Σσ of the singular values; 0 of a matrix of zeros.

    >>> round(effective_rank(np.diag([1.0, 1.0, 0.0])), 6)
    2.0
    """
    scale = np.max(np.abs(W), initial=0).astype(np.float64)
    if not scale:
        return 0.0
    W = W.astype(np.float64) / scale
    squares = np.linalg.eigvalsh(W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W)
    squares[squares < squares.max() * len(squares) * np.finfo(float).eps] = 0
    return _exp_entropy(np.sqrt(squares))


def _exp_entropy(sigma: np.ndarray) -> float:
    p = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


# Chance.


@functools.lru_cache(1024)
def _chance(n: int, d: int, live: tuple[int, ...]) -> dict[str, tuple[float, float]]:
    """Mean and deviation of each figure for random vectors, so many of which are not dead."""
    pairs = sum(m * (m - 1) // 2 for m in live)
    found = {}
    if pairs:
        variance = special.polygamma(1, d / 2) / 2
        found["mean"] = 90.0, float(np.degrees(np.sqrt(variance / pairs)))
        found["smallest"] = _smallest(pairs, d)
        found["nearest"] = _nearest(tuple(m for m in live if m > 1), d)
        found["signs"] = 0.5, 0.5 / np.sqrt(pairs * d)
    mean, deviation = _rank(min(n, d), max(n, d))
    found["rank"] = mean, deviation / np.sqrt(len(live))
    return found


@functools.lru_cache(1024)
def _smallest(count: int, d: int) -> tuple[float, float]:
    """Mean and deviation, in degrees, of the smallest of so many independent angles."""
    survival = (np.arange(QUANTILES) + 0.5) / QUANTILES
    q = -np.expm1(np.log(survival) / count)  # 1 − (1 − F)^count = 1 − survival
    tail = np.minimum(q, 1 - q)
    if d == 1:
        theta = np.zeros_like(q)
    else:  # F(θ) = ½ I_{sin² θ}((d − 1)/2, ½) up to 90°
        theta = np.arcsin(np.sqrt(special.betaincinv((d - 1) / 2, 0.5, 2 * tail)))
    theta = np.degrees(np.where(q > 0.5, np.pi - theta, theta))
    return float(theta.mean()), float(theta.std())


def _nearest(live: tuple[int, ...], d: int) -> tuple[float, float]:
    """Of the mean over all vectors of the smallest of their n − 1 angles.

    Two vectors share one of their angles, so that these minima have the correlation 1/(2n − 3) of
    Marshall and Olkin's exponentials.
    """
    total = variance = 0.0
    for n in live:
        mean, deviation = _smallest(n - 1, d)
        total += n * mean
        variance += n * deviation**2 * (1 + (n - 1) / (2 * n - 3))
    return total / sum(live), variance**0.5 / sum(live)


@functools.lru_cache(1024)
def _rank(small: int, large: int) -> tuple[float, float]:
    """Of the effective rank of a Gaussian matrix, by draws of its bidiagonal form.

    Reference: Dumitriu, Edelman, "Matrix models for beta ensembles", 2002.
    """
    generator, ranks = np.random.default_rng(0), []
    for _ in range(DRAWS if small > 1 else 0):
        a = generator.chisquare(large - np.arange(small))
        b = generator.chisquare(small - 1 - np.arange(small - 1))
        squares = linalg.eigvalsh_tridiagonal(a + np.append(0, b), np.sqrt(a[:-1] * b))
        ranks.append(_exp_entropy(np.sqrt(np.maximum(squares, 0))))
    return (float(np.mean(ranks)), float(np.std(ranks, ddof=1))) if ranks else (float(small), 0.0)


def random_density(d: int, degrees: np.ndarray) -> np.ndarray:
    """Density, per degree, of the angle of two random vectors: ∝ sin^(d−2) θ; for d ≥ 2.

    >>> round(float(random_density(2, np.array([10.0]))[0] * 180), 6)
    1.0
    """
    log = (d - 2) * np.log(np.sin(np.radians(degrees))) - special.betaln((d - 1) / 2, 0.5)
    return np.exp(log) * np.pi / 180
