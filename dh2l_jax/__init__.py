"""Deep Hierarchical-Hyperspherical Learning in JAX.

The names below and the package's wings (`dh2l.models`, `dh2l.data`, ...) are imported when they are
first asked for: a command's help and a config file need no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dh2l_jax.hierarchy import Hierarchy
    from dh2l_jax.metrics import (
        METRICS,
        Metric,
        Sampled,
        distance,
        energy,
        get_metric,
        mean_energy,
        pairwise,
    )
    from dh2l_jax.metrics.similarity import (
        angle,
        code_angle,
        code_similarity,
        cosine_similarity,
        exact_angle,
    )
    from dh2l_jax.numerics import binary_sign, safe_normalize, straight_through, ternary_sign
    from dh2l_jax.regularizers import (
        REGULARIZERS,
        center_energy,
        classes_present,
        diversity,
        group_energy,
        hierarchical,
        kernel_matrices,
        orthogonality,
        plan,
        regularizer,
        rules,
        weight_energy,
    )
    from dh2l_jax.regularizers.constraints import (
        containment,
        hinge,
        margin,
        radius_order,
        satisfaction,
    )
    from dh2l_jax.regularizers.transform import add_regularization as add_regularization
    from dh2l_jax.spheres import Level, logit_vectors, project, radii, sphere_levels
    from dh2l_jax.training.finished.calls import Run as Run
    from dh2l_jax.training.finished.calls import evaluate as evaluate
    from dh2l_jax.training.finished.calls import train as train
    from dh2l_jax.training.finished.predictor import Predictor as Predictor

__version__ = "0.1.0"

__all__ = [
    "METRICS",
    "REGULARIZERS",
    "Hierarchy",
    "Level",
    "Metric",
    "Sampled",
    "angle",
    "binary_sign",
    "center_energy",
    "classes_present",
    "code_angle",
    "code_similarity",
    "containment",
    "cosine_similarity",
    "distance",
    "diversity",
    "energy",
    "exact_angle",
    "get_metric",
    "group_energy",
    "hierarchical",
    "hinge",
    "kernel_matrices",
    "logit_vectors",
    "margin",
    "mean_energy",
    "orthogonality",
    "pairwise",
    "plan",
    "project",
    "radii",
    "radius_order",
    "regularizer",
    "rules",
    "safe_normalize",
    "satisfaction",
    "sphere_levels",
    "straight_through",
    "ternary_sign",
    "weight_energy",
]

# Where the names of `__all__` come from: the first of these modules that exports a name.
_ROOMS = (
    "hierarchy",
    "metrics",
    "metrics.similarity",
    "numerics",
    "regularizers",
    "regularizers.constraints",
    "spheres",
)
# What is an attribute without an import of its own, as `dh2l.models`.
_WINGS = {
    name: name
    for name in (
        "checks",
        "data",
        "hierarchy",
        "metrics",
        "models",
        "numerics",
        "regularizers",
        "spheres",
        "training",
    )
} | {"evaluation": "hierarchy.scores"}
# What needs optax or flax: not in `__all__`, so that `from dh2l_jax import *` does without.
_LINKS = {
    "Predictor": "training.finished.predictor",
    "Run": "training.finished.calls",
    "add_regularization": "regularizers.transform",
    "evaluate": "training.finished.calls",
    "train": "training.finished.calls",
}


def __getattr__(name: str) -> Any:
    if name in _WINGS:
        return importlib.import_module(f"dh2l_jax.{_WINGS[name]}")
    for room in _ROOMS if name in __all__ else [_LINKS[name]] if name in _LINKS else ():
        module = importlib.import_module(f"dh2l_jax.{room}")
        if name in module.__all__:
            return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module 'dh2l_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_WINGS, *_LINKS})
