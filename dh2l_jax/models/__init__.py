"""Networks in Flax Linen: ResNets with heads of every kind; `models.nnx` has NNX heads.

NNX is loaded when `models.nnx` is first asked for.
"""

import importlib
from types import ModuleType

from dh2l_jax.models.factory import CIFAR, HEADS, MODELS, TORCHVISION, check_own_network, create
from dh2l_jax.models.heads import (
    FrameHead,
    HierarchicalHead,
    Neck,
    NodeHead,
    SphereHead,
    dense_kernel,
)
from dh2l_jax.models.layers import Network, outputs_in_training
from dh2l_jax.models.resnet_cifar import CifarResNet
from dh2l_jax.models.resnet_torchvision import TorchvisionResNet

__all__ = [
    "CIFAR",
    "HEADS",
    "MODELS",
    "TORCHVISION",
    "CifarResNet",
    "FrameHead",
    "HierarchicalHead",
    "Neck",
    "Network",
    "NodeHead",
    "SphereHead",
    "TorchvisionResNet",
    "check_own_network",
    "create",
    "dense_kernel",
    "outputs_in_training",
]


def __getattr__(name: str) -> ModuleType:
    if name == "nnx":
        return importlib.import_module("dh2l_jax.models.nnx")
    raise AttributeError(f"module 'dh2l_jax.models' has no attribute {name!r}")
