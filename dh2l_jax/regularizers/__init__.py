"""What is added to a loss: energies of groups and trees, of a model's weights, and constraints."""

from dh2l_jax.regularizers.energies import center_energy, classes_present, group_energy
from dh2l_jax.regularizers.field.convolution import ocnn
from dh2l_jax.regularizers.field.orthogonal import brock, dso, mc, orthogonality, so
from dh2l_jax.regularizers.field.singular import spectral, srip, srip_step
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
    "brock",
    "center_energy",
    "classes_present",
    "diversity",
    "dso",
    "group_energy",
    "hierarchical",
    "kernel_matrices",
    "mc",
    "ocnn",
    "orthogonality",
    "plan",
    "regularizer",
    "rules",
    "so",
    "spectral",
    "srip",
    "srip_step",
    "weight_energy",
]
