"""The table of metrics: scalar profiles f(c, h) of two similarities.

    c = û_i·û_j                          cosine similarity, in [−1, 1]
    h = (1/d) Σ_k s(û_i[k]) s(û_j[k])    code similarity D_h, Eq. (7), in [−1, 1]

A *distance* grows as vectors move apart; an *energy* falls and is what training minimises.
A metric is a few lines of elementwise code on (c, h); how the sum over pairs is done is the
business of `dh2l_jax.metrics.pairs`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from dh2l_jax.checks import as_float, name_and_options, unknown_name
from dh2l_jax.metrics.profile import Metric, MetricLike, Profile
from dh2l_jax.metrics.similarity import (
    code_similarity,
    cosine_similarity,
    inverse_norms,
    ratio,
    theta,
    theta_h,
)
from dh2l_jax.numerics import (
    CLAMPS,
    CLIP,
    angle_of_gap,
    clip,
    clipped_arccos,
    cos_pi,
    safe_norm,
    safe_normalize,
    safe_sqrt,
    sin_pi,
)

__all__ = ["FAMILIES", "METRICS", "REDUCED", "distance", "energy", "get_metric"]


# Profiles. a, b: two angles or two similarities in [0, 1].


# As printed: the geometric mean has no root and the harmonic mean has 4 for 2. `std`: textbook.
_MEANS: dict[str, Profile] = {
    "am": lambda a, b: (a + b) / 2,
    "gm": lambda a, b: a * b,
    "hm": lambda a, b: 4 * ratio(a, b),
    "gm_std": lambda a, b: safe_sqrt(a * b),
    "hm_std": lambda a, b: 2 * ratio(a, b),
}


def _one_minus(profile: Profile) -> Profile:
    return lambda c, h: 1 - profile(c, h)


def _angle_mean(mean: str, prime: bool, clamp: str) -> Profile:
    """Eq. (8): a mean of the two angles."""
    return lambda c, h: _MEANS[mean](theta_h(h, prime, clamp), theta(c, clamp))


def _cos_of_mean(mean: str, prime: bool, clamp: str) -> Profile:
    """Eq. (9), normalised to [0, 1]: the cosine of the mean angle."""
    angle_mean = _angle_mean(mean, prime, clamp)
    return lambda c, h: (cos_pi(angle_mean(c, h)) + 1) / 2


def _mean_of_cos(mean: str, prime: bool) -> Profile:
    """Eq. (10): a mean of A/2 and B/2, A = cos(πθ_h) + 1, B = cos(πθ) + 1.

    No arccos is needed: cos(πθ) = c, and cos(πθ_h) is h (primed) or sin(πh/2).
    """

    def profile(c: jax.Array, h: jax.Array) -> jax.Array:
        code_cos = h if prime else sin_pi(h / 2)
        return _MEANS[mean]((code_cos + 1) / 2, (c + 1) / 2)

    return profile


# The table.


def _metrics(clamp: str) -> dict[str, Metric]:
    """All metrics under one clamp rule."""
    plain = [
        Metric("cosine", "cos", "§4.2", lambda c, h: 1 - c, lambda c, h: c, affine=(1.0, 0.0, 0.0)),
        Metric(
            "n_euclidean2",
            "‖ŵ_i−ŵ_j‖⁻²",
            "footnote 6",
            lambda c, h: safe_sqrt(2 - 2 * c),
            lambda c, h: 1 / (2 - 2 * clip(c, CLIP, clamp)),
        ),
        Metric(
            "angular2",
            "arccos⁻²",
            "§4.2",
            lambda c, h: clipped_arccos(c, 1.0),
            lambda c, h: clipped_arccos(c, clamp=clamp) ** -2,
        ),
    ]
    codes = [
        Metric(
            f"d_h_{short}",
            f"D_h^{short}",
            "(7)",
            lambda c, h: (1 - h) / 2,
            lambda c, h: (1 + h) / 2,
            affine=(0.0, 0.5, 0.5),
            code=code,
        )
        for short, code in (("bin", "binary"), ("ter", "ternary"))
    ]
    means = [
        metric
        for prime in (False, True)
        for mean in _MEANS
        for metric in _mean_metrics(mean, prime, clamp)
    ]
    return {metric.name: metric for metric in plain + codes + means}


def _mean_metrics(mean: str, prime: bool, clamp: str) -> list[Metric]:
    """The metrics of Eqs. (8), (9) and (10) for one mean; the textbook means have no (10)."""
    suffix, mark = ("_prime", "′") if prime else ("", "")
    upper = mean.upper().replace("_STD", "")
    note = ", textbook mean" if mean.endswith("std") else ""
    d8 = _angle_mean(mean, prime, clamp)
    e9 = _cos_of_mean(mean, prime, clamp)
    metrics = [
        Metric(f"d_{mean}{suffix}", f"D{mark}_{upper}", f"(8){note}", d8, _one_minus(d8)),
        Metric(f"d_cos_{mean}{suffix}", f"D{mark}_cos({upper})", f"(9){note}", _one_minus(e9), e9),
    ]
    if not note:
        # On A/2 and B/2 the printed (10) is the textbook harmonic mean: AB/(A+B).
        e10 = _mean_of_cos("hm_std" if mean == "hm" else mean, prime)
        affine = (0.25, 0.25, 0.5) if mean == "am" and prime else None
        name, symbol = f"d_{mean}_cos{suffix}", f"D{mark}_{upper}cos"
        metrics.append(Metric(name, symbol, "(10)", _one_minus(e10), e10, affine))
    return metrics


# The field's metrics, on the gap t = 1 − c, clipped where it has no digits left: chord² = 2t.

GAP = 1e-5
# Of MHE: "official" is its code, twice the s = 0 of the paper, angles θ/π + 1e−4 with a factor of
# 0.1 for hidden layers, and 1e−4 under the root of each norm, which moves rows shorter than 0.1.
CONVENTIONS = ("paper", "official")


def _gap(c: jax.Array, clamp: str) -> jax.Array:
    """max(1 − c, 1e−5); below, the gradient is 0 ("hard") or passes ("straight_through")."""
    t = 1 - c
    clipped = jnp.where(t > GAP, t, GAP)
    return clipped if clamp == "hard" else t + lax.stop_gradient(clipped - t)


def _chord(t: jax.Array) -> jax.Array:
    return safe_sqrt(2 * t)


def _mhe(kind: str, s: int) -> Callable[..., Metric]:
    """The Riesz energy z⁻ˢ, or −log z for s = 0, of a chord or an angle z."""
    of, name = (_chord, "‖û_i−û_j‖") if kind == "s" else (angle_of_gap, "arccos")
    symbol = f"{name}^−{s}" if s else f"−log {name}"

    def metric(clamp: str, convention: str = "paper") -> Metric:
        if convention not in CONVENTIONS:
            raise ValueError(unknown_name("convention", convention, CONVENTIONS))
        official = convention == "official"

        def energy(c: jax.Array, h: jax.Array) -> jax.Array:
            z = of(_gap(c, clamp))
            if not official:
                return z**-s if s else -jnp.log(z)
            if kind == "s":
                return z**-s if s else -2 * jnp.log(z)
            z = z / jnp.pi + 1e-4
            return 0.1 * z**-s if s else -jnp.log(z)

        epsilon = 1e-4 if official else 0.0
        distance = lambda c, h: of(1 - c)  # noqa: E731 (a profile)
        return Metric(f"mhe_{kind}{s}", symbol, "Liu 2018", distance, energy, epsilon=epsilon)

    return metric


def _size(c: jax.Array) -> jax.Array:
    """|c|, with slope 0 at the kink, where JAX has 1."""
    return c * jnp.sign(c)


def _of_energy(name: str, symbol: str, source: str, energy: Profile) -> Metric:
    """A metric whose distance is what its energy lacks to 1."""
    return Metric(name, symbol, source, _one_minus(energy), energy)


def _gaussian(clamp: str, t: float = 2.0) -> Metric:
    del clamp
    symbol = "exp(−t ‖û_i−û_j‖²)"
    return _of_energy("gaussian", symbol, "Wang 2020", lambda c, h: jnp.exp(-2 * t * (1 - c)))


def _angular_hinge(clamp: str, tau: float = 0.0) -> Metric:
    del clamp
    symbol = "max(0, |c| − τ)"
    energy = lambda c, h: jnp.maximum(_size(c) - tau, 0)  # noqa: E731 (a profile)
    return _of_energy("angular_hinge", symbol, "Xie 2017", energy)


def _uniformface(clamp: str) -> Metric:
    energy = lambda c, h: 1 / (_chord(jnp.maximum(1 - c, 0)) + 1)  # noqa: E731 (a profile)
    del clamp
    return _of_energy("uniformface", "1/(‖û_i−û_j‖ + 1)", "Duan 2019", energy)


def _arccos(clamp: str) -> Metric:
    energy = lambda c, h: -angle_of_gap(_gap(c, clamp))  # noqa: E731 (a profile)
    return Metric("arccos", "−arccos", "Wang 2020", lambda c, h: angle_of_gap(1 - c), energy)


def _chord2(clamp: str, t: float = 1.0) -> Metric:
    del clamp
    profiles = lambda c, h: 2 * t * (1 - c), lambda c, h: 2 * t * (c - 1)
    return Metric("chord2", "−t ‖û_i−û_j‖²", "Liu 2021", *profiles, (2.0 * t, 0.0, -2.0 * t))


FAMILIES: Mapping[str, Callable[..., Metric]] = types.MappingProxyType(
    {f"mhe_{kind}{s}": _mhe(kind, s) for kind in "sa" for s in range(3)}
    | {
        "arccos": _arccos,
        "chord2": _chord2,
        "abs_cosine": lambda _: _of_energy("abs_cosine", "|c|", "Keras", lambda c, h: _size(c)),
        "cosine2": lambda _: dataclasses.replace(
            _of_energy("cosine2", "c²", "coherence", lambda c, h: c * c), square=1.0
        ),
        "gaussian": _gaussian,
        "angular_hinge": _angular_hinge,
        "uniformface": _uniformface,
    }
)
"""The field's metrics by name: (clamp, options) → metric."""

REDUCED: Mapping[str, tuple[str, str]] = types.MappingProxyType(
    {
        "uniformity": ("chord2(t=2)", "log_mean_exp"),
        "mma": ("arccos", "row_max"),
        "regularface": ("cosine", "row_max"),
        "koleo": ("mhe_s0", "row_max"),
        "mhs": ("chord2", "max"),
        "coherence": ("abs_cosine", "max"),
    }
)
"""What the field calls a metric under another reduction than the mean."""


_TABLES = {clamp: _metrics(clamp) for clamp in CLAMPS}

METRICS: Mapping[str, Metric] = types.MappingProxyType(_TABLES["hard"])
"""Every metric by name, under the paper's hard clip."""


def get_metric(
    name: MetricLike,
    *,
    clamp: str = "hard",
    code: str | None = None,
    threshold: float | None = None,
) -> Metric:
    """The metric of a name, with options; any profile f(c, h) is taken where a name is.

    Args:
      name: a key of `METRICS` or of the field's `FAMILIES`, with options in the text where it takes
        some, "gaussian(t=2)"; a `Metric`; or a callable f(c, h), which then serves as both the
        distance and the energy, returns floats and closes over no value that jit traces.
      clamp: gradient of the arccos beyond ±0.99: "hard" (none) or "straight_through".
      code: "binary" or "ternary" instead of the metric's own.
      threshold: dead zone of the ternary code, in units of mean|w|.

    Raises:
      ValueError: unknown name (the nearest one is named), clamp or code.
      TypeError: neither a name, nor a Metric, nor a callable.

    >>> get_metric("d_am_cos").symbol
    'D_AMcos'
    """
    if clamp not in CLAMPS:
        raise ValueError(unknown_name("clamp", clamp, CLAMPS))
    if isinstance(name, str):
        metric = _named(name, clamp)
    elif isinstance(name, Metric):
        metric = name
    elif callable(name):
        metric = Metric(getattr(name, "__name__", "profile"), "f", "", name, name)
    else:
        raise TypeError(
            f"expected a metric's name, a Metric or a callable f(c, h), found {name!r} "
            f"of type {type(name).__name__}"
        )
    return _with_code(metric, code, threshold)


@functools.cache
def _named(text: str, clamp: str) -> Metric:
    name, options = name_and_options(text)
    if name not in METRICS and name not in FAMILIES:
        raise ValueError(_no_metric(name, text))
    if name in METRICS and not options:
        return _TABLES[clamp][name]
    make = FAMILIES.get(name, lambda clamp: _TABLES[clamp][name])
    known = [*list(inspect.signature(make).parameters)[1:], "precision"]
    for option in options:
        if option not in known:
            raise ValueError(f"metric {name}: {unknown_name('option', option, known)}")
    precision = options.pop("precision", "highest")
    return dataclasses.replace(make(clamp, **options), name=text, precision=precision)


def _no_metric(name: str, text: str) -> str:
    call = f"dh2l.regularizer({text!r})(W)"
    if name not in REDUCED:
        unknown = unknown_name("metric", name, (*METRICS, *FAMILIES))
        return f"{unknown}; a regulariser that is no mean over pairs is {call}"
    metric, reduction = REDUCED[name]
    reduced = f"mean_energy(W, {metric!r}, reduction={reduction!r})"
    return f"{name!r} is no mean over pairs: call {call} or {reduced}"


@functools.cache
def _with_code(metric: Metric, code: str | None, threshold: float | None) -> Metric:
    if code is None and threshold is None:
        return metric
    code = metric.code if code is None else code
    threshold = metric.threshold if threshold is None else threshold
    return dataclasses.replace(metric, code=code, threshold=threshold)


# Distance and energy of two vectors.


def distance(u: ArrayLike, v: ArrayLike, metric: MetricLike) -> jax.Array:
    """D(u, v) of a metric: grows as the vectors move apart; invariant to their lengths.

    Args:
      u: (d,).
      v: (d,).
      metric: a name, a `Metric` or a profile f(c, h).

    Raises:
      ValueError: shapes differ or unknown metric.

    >>> distance(jnp.array([1.0, 1.0]), jnp.array([-1.0, -1.0]), "cosine").item()
    2.0

    Reference: DH²L, Eqs. (7)-(10).
    """
    metric = get_metric(metric)
    return metric.distance(*_similarities(u, v, metric))


def energy(u: ArrayLike, v: ArrayLike, metric: MetricLike) -> jax.Array:
    """e(u, v) of a metric: falls as the vectors move apart; what training minimises.

    Args:
      u: (d,).
      v: (d,).
      metric: a name, a `Metric` or a profile f(c, h).

    Raises:
      ValueError: shapes differ or unknown metric.

    >>> round(float(energy(jnp.array([1.0, 1.0]), jnp.array([1.0, -1.0]), "d_am_cos")), 4)
    0.5

    Reference: DH²L, Eqs. (7)-(10).
    """
    metric = get_metric(metric)
    return metric.energy(*_similarities(u, v, metric))


def _similarities(u: ArrayLike, v: ArrayLike, metric: Metric) -> tuple[jax.Array, jax.Array]:
    """(c, h) of two vectors; the codes are those of the unit vectors."""
    c = cosine_similarity(u, v)
    if metric.epsilon:
        for w in map(as_float, (u, v)):
            c *= safe_norm(w) * inverse_norms(w, metric.epsilon)
    u, v = safe_normalize(u), safe_normalize(v)
    return c, code_similarity(u, v, code=metric.code, threshold=metric.threshold)
