"""Deep Hierarchical-Hyperspherical Learning in JAX.

The metric library (this namespace) needs JAX alone; `dh2l_jax.models`, `dh2l_jax.data` and
`dh2l_jax.training` are imported on first use.
"""

from __future__ import annotations

import importlib

from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.metrics import METRICS, Metric, distance, energy, get_metric, mean_energy, pairwise
from dh2l_jax.metrics.similarity import angle, code_angle, code_similarity, cosine_similarity
from dh2l_jax.numerics import binary_sign, safe_normalize, straight_through, ternary_sign
from dh2l_jax.regularizers import (
    center_energy,
    classes_present,
    group_energy,
    hierarchical,
    orthogonality,
    weight_energy,
)
from dh2l_jax.regularizers.constraints import containment, hinge, margin, radius_order, satisfaction
from dh2l_jax.regularizers.params.kernels import kernel_matrices
from dh2l_jax.spheres import Level, logit_vectors, project, radii, sphere_levels

__version__ = "0.1.0"

__all__ = [
    "METRICS",
    "Hierarchy",
    "Level",
    "Metric",
    "angle",
    "binary_sign",
    "center_energy",
    "classes_present",
    "code_angle",
    "code_similarity",
    "containment",
    "cosine_similarity",
    "distance",
    "energy",
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
    "project",
    "radii",
    "radius_order",
    "safe_normalize",
    "satisfaction",
    "sphere_levels",
    "straight_through",
    "ternary_sign",
    "weight_energy",
]


def __getattr__(name: str):
    if name in ("data", "models", "training"):
        return importlib.import_module(f"dh2l_jax.{name}")
    if name == "evaluation":
        return importlib.import_module("dh2l_jax.hierarchy.scores")
    raise AttributeError(f"module 'dh2l_jax' has no attribute {name!r}")
