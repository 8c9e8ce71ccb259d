"""What is added to a loss: energies of groups and trees, of a model's weights, and constraints."""

from dh2l_jax.regularizers.energies import center_energy, classes_present, group_energy
from dh2l_jax.regularizers.field.orthogonal import orthogonality
from dh2l_jax.regularizers.params.diversity import diversity
from dh2l_jax.regularizers.params.kernels import kernel_matrices, weight_energy
from dh2l_jax.regularizers.params.plan import Plan, plan
from dh2l_jax.regularizers.params.rules import rules
from dh2l_jax.regularizers.table import REGULARIZERS, Regularizer, regularizer
from dh2l_jax.regularizers.tree import hierarchical

__all__ = [
    "REGULARIZERS",
    "Plan",
    "Regularizer",
    "center_energy",
    "classes_present",
    "diversity",
    "group_energy",
    "hierarchical",
    "kernel_matrices",
    "orthogonality",
    "plan",
    "regularizer",
    "rules",
    "weight_energy",
]
