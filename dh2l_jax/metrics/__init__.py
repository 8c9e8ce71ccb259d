"""The metric library: profiles f(c, h) of two similarities, and their means over all pairs."""

from dh2l_jax.metrics.pairs import mean_energy, pairwise
from dh2l_jax.metrics.profile import Metric, MetricLike, Profile
from dh2l_jax.metrics.table import METRICS, distance, energy, get_metric

__all__ = [
    "METRICS",
    "Metric",
    "MetricLike",
    "Profile",
    "distance",
    "energy",
    "get_metric",
    "mean_energy",
    "pairwise",
]
