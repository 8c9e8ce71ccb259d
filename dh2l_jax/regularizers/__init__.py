"""What is added to a loss: energies of groups and trees, of a model's weights, and constraints."""

from dh2l_jax.regularizers.energies import center_energy, classes_present, group_energy
from dh2l_jax.regularizers.field.convolution import ocnn
from dh2l_jax.regularizers.field.determinants import dpp, log_det, mgd
from dh2l_jax.regularizers.field.features import (
    barlow,
    decov,
    ole,
    vicreg_covariance,
    vicreg_variance,
)
from dh2l_jax.regularizers.field.hyperspherical import comhe, mar, mhc, mhp, r_mhp
from dh2l_jax.regularizers.field.orthogonal import brock, dso, mc, orthogonality, so
from dh2l_jax.regularizers.field.singular import spectral, srip, srip_step
from dh2l_jax.regularizers.field.spectra import uer, von_neumann
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
    "barlow",
    "brock",
    "center_energy",
    "classes_present",
    "comhe",
    "decov",
    "diversity",
    "dpp",
    "dso",
    "group_energy",
    "hierarchical",
    "kernel_matrices",
    "log_det",
    "mar",
    "mc",
    "mgd",
    "mhc",
    "mhp",
    "ocnn",
    "ole",
    "orthogonality",
    "plan",
    "r_mhp",
    "regularizer",
    "rules",
    "so",
    "spectral",
    "srip",
    "srip_step",
    "uer",
    "vicreg_covariance",
    "vicreg_variance",
    "von_neumann",
    "weight_energy",
]
