"""The metric library: profiles f(c, h) of two similarities, and their means over all pairs."""

from dh2l_jax.metrics.pairs import explain, mean_energy, pairwise
from dh2l_jax.metrics.profile import Metric, MetricLike, Profile
from dh2l_jax.metrics.sums.closed import Closed
from dh2l_jax.metrics.sums.dense import Dense
from dh2l_jax.metrics.sums.ring import Ring
from dh2l_jax.metrics.sums.sampled import Sampled
from dh2l_jax.metrics.sums.tiled import Tiled
from dh2l_jax.metrics.table import METRICS, distance, energy, get_metric

__all__ = [
    "METRICS",
    "Closed",
    "Dense",
    "Metric",
    "MetricLike",
    "Profile",
    "Ring",
    "Sampled",
    "Tiled",
    "distance",
    "energy",
    "explain",
    "get_metric",
    "mean_energy",
    "pairwise",
]
