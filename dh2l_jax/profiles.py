"""What a profile f(c, h) depends on, read off its trace: which similarities, and which linearly.

A similarity that a profile does not use needs no Gram product, and one that it is affine in needs
none either, as sums of c or h have a closed form.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dh2l_jax.metrics import Metric, Profile

__all__ = ["Affine", "Used", "separate", "similarities_used"]

Affine = tuple[float, float, float]


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
    jaxpr = jax.make_jaxpr(profile)(0.0, 0.0).jaxpr
    needed = {v for v in jaxpr.outvars if not hasattr(v, "val")}
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            needed.update(v for v in eqn.invars if not hasattr(v, "val"))
    return Used(*(v in needed for v in jaxpr.invars))


@functools.lru_cache(maxsize=256)
def separate(metric: Metric) -> tuple[Affine, Metric | None]:
    """e = a·c + b·h + k + rest(c, h), with every similarity that e is affine in out of the rest.

    Returns:
      (a, b, k), and the rest as a metric, None if there is none.

    >>> import dh2l_jax as dh2l
    >>> affine, rest = separate(dh2l.get_metric("d_am_cos"))
    >>> affine, similarities_used(rest.energy)
    ((0.25, 0.0, 0.0), Used(c=False, h=True))
    """
    if metric.affine is not None:
        return metric.affine, None
    energy = metric.energy
    linear_c, linear_h = (
        not any(similarities_used(jax.grad(energy, argument))) for argument in (0, 1)
    )
    a, b, k = _at_zero(energy) if linear_c or linear_h else (0.0, 0.0, 0.0)
    if linear_c and linear_h:
        return (a, b, k), None

    def rest(c: jax.Array, h: jax.Array) -> jax.Array:
        return energy(jnp.zeros_like(c) if linear_c else c, jnp.zeros_like(h) if linear_h else h)

    affine = (a if linear_c else 0.0, b if linear_h else 0.0, 0.0)
    return affine, dataclasses.replace(metric, energy=rest)


def _at_zero(energy: Profile) -> Affine:
    """Slopes and value at c = h = 0, as numbers also while something else is traced."""
    with jax.ensure_compile_time_eval():
        k, (a, b) = jax.jit(jax.value_and_grad(energy, (0, 1)))(0.0, 0.0)
        return float(a), float(b), float(k)
