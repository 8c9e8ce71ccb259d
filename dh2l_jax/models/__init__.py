"""Networks in Flax Linen: ResNets with a plain or a hierarchical head."""

from dh2l_jax.models.factory import CIFAR, MODELS, TORCHVISION, create
from dh2l_jax.models.heads import HierarchicalHead, dense_kernel
from dh2l_jax.models.layers import Network
from dh2l_jax.models.resnet_cifar import CifarResNet
from dh2l_jax.models.resnet_torchvision import TorchvisionResNet

__all__ = [
    "CIFAR",
    "MODELS",
    "TORCHVISION",
    "CifarResNet",
    "HierarchicalHead",
    "Network",
    "TorchvisionResNet",
    "create",
    "dense_kernel",
]
