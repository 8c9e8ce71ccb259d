"""A metric as two profiles f(c, h), and what a profile depends on, read off its trace.

A similarity that a profile does not use needs no Gram product, and one that it is affine in needs
none either, as sums of c or h have a closed form.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from dh2l_jax.checks import unknown_name
from dh2l_jax.metrics.similarity import check_code

__all__ = [
    "PRECISIONS",
    "Affine",
    "Metric",
    "MetricLike",
    "Profile",
    "Used",
    "energy_of_opposites",
    "exponential",
    "grows_with_c",
    "half_space_metric",
    "is_steep",
    "similarities_used",
    "split_affine",
    "sum_of_opposites",
]

Profile = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A pairwise metric as two profiles of (c, h), elementwise on arrays of any shape.

    Attributes:
      name: key of `METRICS`.
      symbol: as the paper prints it.
      equation: where the paper defines it.
      distance: (c, h) → distance, grows as vectors move apart.
      energy: (c, h) → energy, falls as vectors move apart; what training minimises.
      affine: (a, b, k) if energy = a·c + b·h + k, which has an O(nd) closed form; else None.
      code: "binary" or "ternary", the code that h compares.
      threshold: dead zone of the ternary code, in units of mean|w|.
      square: q if energy = q·c², which has a closed form in d×d; else 0.
      epsilon: c is divided by the roots of ‖w‖² + ε instead of the norms.
      precision: of the products of unit vectors, a key of `PRECISIONS`; those of codes are exact.
    """

    name: str
    symbol: str
    equation: str
    distance: Profile = dataclasses.field(repr=False)
    energy: Profile = dataclasses.field(repr=False)
    affine: tuple[float, float, float] | None = None
    code: str = "binary"
    threshold: float = 0.0
    square: float = 0.0
    epsilon: float = 0.0
    precision: str = "highest"

    def __post_init__(self) -> None:
        check_code(self.code, self.threshold)
        if self.precision not in PRECISIONS:
            raise ValueError(unknown_name("precision", self.precision, PRECISIONS))
        if self.epsilon and (self.affine or self.square):
            raise ValueError(f"metric {self.name!r}: a closed form takes epsilon = 0")


MetricLike = str | Metric | Profile

Affine = tuple[float, float, float]

# "x3" is three passes of bfloat16 on accelerators; CPUs compute in float32 either way.
PRECISIONS = types.MappingProxyType(
    {"highest": lax.Precision.HIGHEST, "x3": lax.DotAlgorithmPreset.BF16_BF16_F32_X3}
)
# Of the greatest slope, what slopes may change by in a unit of c: "x3" has c to 5e-6, thus slopes
# to 1e-3. The clip of ±0.99 leaves 150; poles have 10,000 and more.
STEEP = 200.0
MAX_EXPONENT = 85  # exp(−85) is the last that float32 holds in full


# What a profile depends on.


class Used(NamedTuple):
    """Whether something depends on c and on h."""

    c: bool
    h: bool


@functools.lru_cache(maxsize=256)
def similarities_used(profile: Profile) -> Used:
    """Which similarities a profile depends on.

    >>> similarities_used(lambda c, h: c**2)
    Used(c=True, h=False)
    """
    jaxpr = _trace(profile)
    needed = _variables(jaxpr.outvars)
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            needed |= _variables(eqn.invars)
    return Used(*(v in needed for v in jaxpr.invars))


def _linear_in(profile: Profile) -> Used:
    """In which similarities a profile is affine, with a slope that depends on neither.

    What is asked is whether its own trace takes a similarity through sums and multiples alone: a
    derivative that does not change proves nothing, as that of a step or of an estimator.
    """
    jaxpr = _trace(profile)
    return Used(
        *(
            _passes_linearly(jaxpr, argument)
            and not any(similarities_used(jax.grad(profile, argument)))
            for argument in (0, 1)
        )
    )


def _passes_linearly(jaxpr: Any, argument: int) -> bool:
    depends = {jaxpr.invars[argument]}
    for eqn in jaxpr.eqns:
        inputs = [not hasattr(v, "val") and v in depends for v in eqn.invars]
        if not any(inputs):
            continue
        if not _is_linear(eqn, inputs):
            return False
        depends |= set(eqn.outvars)
    return True


def _is_linear(eqn: Any, depends: list[bool]) -> bool:
    """Whether an operation is linear in the operands marked, taken together."""
    match eqn.primitive.name:
        case "add" | "add_any" | "sub" | "neg":
            return True
        case "mul":
            return not all(depends)
        case "div":
            return not depends[1]
        case "convert_element_type":
            return jnp.issubdtype(eqn.params["new_dtype"], jnp.floating)
    return False


def _trace(profile: Profile) -> Any:
    similarity = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.make_jaxpr(profile)(similarity, similarity).jaxpr


def _variables(atoms: Any) -> set[Any]:
    return {v for v in atoms if not hasattr(v, "val")}


@functools.lru_cache(maxsize=256)
def split_affine(metric: Metric) -> tuple[Affine, Metric | None]:
    """e = a·c + b·h + k + rest(c, h), with every similarity that e is affine in out of the rest.

    Returns:
      (a, b, k), and the rest as a metric, None if there is none.

    >>> import dh2l_jax as dh2l
    >>> affine, rest = split_affine(dh2l.get_metric("d_am_cos"))
    >>> affine, similarities_used(rest.energy)
    ((0.25, 0.0, 0.0), Used(c=False, h=True))
    """
    if metric.affine is not None:
        return metric.affine, None
    if metric.epsilon:
        return (0.0, 0.0, 0.0), metric
    energy = metric.energy
    linear_c, linear_h = _linear_in(energy)
    a, b, k = _at_zero(energy) if linear_c or linear_h else (0.0, 0.0, 0.0)
    if linear_c and linear_h:
        return (a, b, k), None

    def rest(c: jax.Array, h: jax.Array) -> jax.Array:
        return energy(jnp.zeros_like(c) if linear_c else c, jnp.zeros_like(h) if linear_h else h)

    affine = (a if linear_c else 0.0, b if linear_h else 0.0, 0.0)
    return affine, dataclasses.replace(metric, energy=rest)


def _at_zero(energy: Profile) -> Affine:
    """Slopes and value at c = h = 0, as numbers also while something else is traced."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):  # slopes as exact as rows may be
        k, (a, b) = jax.jit(jax.value_and_grad(energy, (0, 1)))(0.0, 0.0)
        return float(a), float(b), float(k)


@functools.lru_cache(maxsize=256)
def grows_with_c(profile: Profile) -> bool:
    """Whether a profile depends on c alone and never falls, at 257 places of [−1, 1].

    >>> grows_with_c(lambda c, h: jnp.exp(c)), grows_with_c(lambda c, h: c * c)
    (True, False)
    """
    if similarities_used(profile) != Used(c=True, h=False):
        return False
    with jax.ensure_compile_time_eval():
        c = jnp.linspace(-1.0, 1.0, 257)
        return bool(jnp.all(jnp.diff(jax.jit(profile)(c, jnp.zeros_like(c))) >= 0))


@functools.lru_cache(maxsize=256)
def is_steep(profile: Profile) -> bool:
    """Whether slopes in c change so quickly that c is needed in full, as near a pole.

    >>> is_steep(lambda c, h: c**2), is_steep(lambda c, h: -jnp.log(jnp.maximum(1 - c, 1e-5)))
    (False, True)
    """
    with jax.ensure_compile_time_eval():
        near = 1 - jnp.logspace(-4.5, 0, 256)
        c, h = jnp.meshgrid(jnp.concatenate([-near, near]), jnp.linspace(-1.0, 1.0, 5))
        slope = jax.grad(profile)
        slopes = jax.jit(jax.vmap(jax.value_and_grad(slope)))(c.reshape(-1), h.reshape(-1))
        greatest, change = (float(jnp.max(jnp.abs(x))) for x in slopes)
    return not change <= STEEP * greatest


@functools.lru_cache(maxsize=256)
def exponential(metric: Metric) -> tuple[Metric, float]:
    """exp(e − m), and m, the largest e on the square of (c, h), which a log takes back.

    Raises:
      ValueError: energies differ by so much that the exponentials of most would be 0.
    """
    with jax.ensure_compile_time_eval():
        c, h = jnp.meshgrid(jnp.linspace(-1.0, 1.0, 65), jnp.linspace(-1.0, 1.0, 65))
        e = jax.jit(metric.energy)(c, h)
        least, most = float(jnp.min(e)), float(jnp.max(e))
    if not most - least <= MAX_EXPONENT:
        raise ValueError(
            f"log_mean_exp takes energies that differ by at most {MAX_EXPONENT}, found "
            f"{least:.4g} to {most:.4g} of {metric.name!r}"
        )

    def energy(c: jax.Array, h: jax.Array) -> jax.Array:
        return jnp.exp(metric.energy(c, h) - most)

    return dataclasses.replace(metric, energy=energy, affine=None, square=0.0), most


def energy_of_opposites(metric: Metric, dtype: DTypeLike) -> jax.Array:
    """e(w, −w): both similarities are −1, whatever the vector."""
    return metric.energy(jnp.asarray(-1, dtype), jnp.asarray(-1, dtype))


def sum_of_opposites(metric: Metric, W: jax.Array, weights: jax.Array) -> jax.Array:
    """Σ weights·e(w, −w) over the rows of W, (..., n, d), given weights (..., n)."""
    if not metric.epsilon:
        return energy_of_opposites(metric, W.dtype) * jnp.sum(weights)
    used = weights != 0
    square = jnp.sum(jnp.where(used[..., None], W, 0) ** 2, axis=-1)
    e = metric.energy(-square / (square + metric.epsilon), -jnp.ones_like(square))
    return jnp.sum(weights * e)


@functools.lru_cache(maxsize=256)
def half_space_metric(metric: Metric) -> Metric:
    """e(u, v) + e(−u, −v) + e(u, −v) + e(−u, v): for W ∪ −W no more similarities are needed.

    >>> import dh2l_jax as dh2l
    >>> half_space_metric(dh2l.get_metric("cosine")).affine
    (0.0, 0.0, 0.0)
    """
    affine = metric.affine and (0.0, 0.0, 4 * metric.affine[2])

    def energy(c: jax.Array, h: jax.Array) -> jax.Array:
        return 2 * (metric.energy(c, h) + metric.energy(-c, -h))

    return dataclasses.replace(metric, energy=energy, affine=affine, square=4 * metric.square)
