"""Networks by name, with a head by name."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from dh2l_jax.checks import unknown_name
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.models.heads import (
    FRAMES,
    FrameHead,
    HierarchicalHead,
    Neck,
    NodeHead,
    SphereHead,
    plain_init,
)
from dh2l_jax.models.layers import Network
from dh2l_jax.models.resnet_cifar import CifarResNet
from dh2l_jax.models.resnet_torchvision import BLOCKS, TorchvisionResNet
from dh2l_jax.spheres import EPSILON

__all__ = ["CIFAR", "HEADS", "MODELS", "TORCHVISION", "create"]

CIFAR = {f"resnet{depth}": depth for depth in (8, 20, 32, 44, 56, 110)}
TORCHVISION = {f"resnet{depth}": depth for depth in BLOCKS}
MODELS = (*CIFAR, *TORCHVISION)
HEADS = ("hierarchical", "haframe", "etf", "sphere", "conditional", "hrn")  # on a tree of classes


def create(
    name: str,
    *,
    hierarchy: Hierarchy | None = None,
    num_classes: int | None = None,
    shortcut: str = "A",
    dtype: Dtype = jnp.float32,
    center: str = "free",
    epsilon: float = EPSILON,
    logits: str = "relative",
    inner_surfaces: bool = False,
    head: str = "hierarchical",
    gamma: float | None = None,
    radius: float = SphereHead.radius,
) -> Network:
    """A network by name, with a head on a tree of classes or a plain one on n classes.

    Args:
      name: one of `MODELS`: a `TorchvisionResNet` at the depths 18, 34, 50 and 101, else a
        `CifarResNet`.
      hierarchy: the tree of classes, for the `head` on it; or
      num_classes: number of classes, for a plain bias-free Dense head.
      shortcut: of a `CifarResNet`: "A" (no parameters) or "B" (1×1 convolution). The others have
        1×1 convolutions and take no choice: leave the default.
      dtype: compute dtype of the convolutions; parameters and logits are float32.
      center: of the hierarchical head: "free", "mean" or "epsilon".
      epsilon: of the hierarchical head.
      logits: of the hierarchical head: "relative" or "absolute".
      inner_surfaces: of the hierarchical head.
      head: one of `HEADS`: a `HierarchicalHead`, a `FrameHead` (haframe or etf, after a `Neck` of
        width C), a `SphereHead` or a `NodeHead` (conditional or hrn).
      gamma: γ of a haframe or sphere head, by default 2 and ½.
      radius: R₀ of a sphere head.

    Returns:
      A Linen module: `model.init(key, images, train=False)`, `model.apply(...)` → logits (b, C).

    Raises:
      ValueError: unknown name or option, or not exactly one of hierarchy and num_classes.

    >>> import jax
    >>> model = create("resnet20", num_classes=100)
    >>> images = jnp.zeros((1, 32, 32, 3))
    >>> shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    >>> sum(p.size for p in jax.tree.leaves(shapes["params"]))
    275472

    Reference: DH²L, §5.
    """
    if name not in MODELS:
        raise ValueError(unknown_name("model", name, MODELS))
    if (hierarchy is None) == (num_classes is None):
        raise ValueError(
            f"expected one of hierarchy and num_classes, found {hierarchy} and {num_classes}"
        )
    neck = None
    if hierarchy is None:
        top = _plain_head(num_classes or 0)
    elif head == "hierarchical":
        top = HierarchicalHead(hierarchy, center, epsilon, logits, inner_surfaces)
    else:
        top, neck = _other_head(head, hierarchy, gamma, radius)
    if name in CIFAR:
        return CifarResNet(CIFAR[name], top, shortcut=shortcut, dtype=dtype, neck=neck)
    if shortcut != "A":
        valid = ", ".join(CIFAR)
        raise ValueError(f"{name} takes no shortcut, got {shortcut!r}; networks that do: {valid}")
    return TorchvisionResNet(TORCHVISION[name], top, dtype=dtype, neck=neck)


def _other_head(
    head: str, tree: Hierarchy, gamma: float | None, radius: float
) -> tuple[nn.Module, nn.Module | None]:
    """A head that is not the hierarchical one, and the neck that it needs."""
    if head in FRAMES:
        classes = tree.num_classes
        gamma = FrameHead.gamma if gamma is None else gamma
        return FrameHead(tree, head, classes, gamma), Neck(classes)
    if head == "sphere":
        return SphereHead(tree, radius, SphereHead.gamma if gamma is None else gamma), None
    if head not in HEADS:
        raise ValueError(unknown_name("head", head, HEADS))
    return NodeHead(tree, head), None


def _plain_head(num_classes: int) -> nn.Dense:
    if num_classes < 1:
        raise ValueError(f"num_classes must be ≥ 1, found {num_classes}")
    return nn.Dense(num_classes, use_bias=False, kernel_init=plain_init)
