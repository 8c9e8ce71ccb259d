"""The heads: features to logits; each exports to one plain kernel where its logits are linear."""

from dh2l_jax.models.heads.frame import FRAMES, FrameHead, Neck
from dh2l_jax.models.heads.hierarchical import HierarchicalHead
from dh2l_jax.models.heads.node import NodeHead
from dh2l_jax.models.heads.plain import dense_kernel, plain_init
from dh2l_jax.models.heads.sphere import SphereHead

__all__ = [
    "FRAMES",
    "FrameHead",
    "HierarchicalHead",
    "Neck",
    "NodeHead",
    "SphereHead",
    "dense_kernel",
    "plain_init",
]
