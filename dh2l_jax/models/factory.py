"""Networks by name, with a head by name."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from dh2l_jax.checks import is_own, own, unknown_name
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
from dh2l_jax.models.layers import Network, outputs_in_training
from dh2l_jax.models.resnet_cifar import CifarResNet
from dh2l_jax.models.resnet_torchvision import BLOCKS, TorchvisionResNet
from dh2l_jax.spheres import EPSILON

__all__ = ["CIFAR", "HEADS", "MODELS", "TORCHVISION", "check_own_network", "create"]

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
        `CifarResNet`; or "package.module:function", your own: the function is called with `head=`,
        a Linen module, and returns a Linen module with the field `head` that holds it, whose
        `__call__(images, train=)` gives the head's logits.
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
    if name not in MODELS and not is_own(name):
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
    if is_own(name):
        return _own_network(name, top, neck, shortcut, dtype)
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


def _own_network(
    name: str, head: nn.Module, neck: nn.Module | None, shortcut: str, dtype: Dtype
) -> Network:
    """The network of a user's function. It is no `Network`, but has its fields and calls."""
    if neck is not None:
        raise ValueError(
            f"{name} has no neck, which the head {type(head).__name__} needs: choose another "
            "model.head"
        )
    if shortcut != "A" or jnp.dtype(dtype) != jnp.float32:
        raise ValueError(
            f"{name} is called with head= alone: leave out model.shortcut and model.dtype, found "
            f"{shortcut!r} and {jnp.dtype(dtype).name}"
        )
    network = own("model.name", name)(head=head)
    if not isinstance(network, nn.Module) or getattr(network, "head", None) != head:
        raise ValueError(
            f"{name}: expected a Linen module with the field `head: nn.Module` that holds the head "
            f"it was given, found {type(network).__name__}"
        )
    try:
        hash(network)
    except TypeError:
        fields = ", ".join(vars(network).keys() - {"parent", "name", "scope"})
        raise ValueError(
            f"{name}: a field can't be hashed, one of {fields}: write tuples in place of arrays"
        ) from None
    return cast(Network, network)


def check_own_network(model: Any, image_shape: tuple[int, ...], name: str) -> None:
    """Raises a `ValueError` unless a user's network does with images what is asked of it.

    Nothing is computed.
    """
    images, key = jnp.zeros((1, *image_shape)), jax.random.key(0)
    head = model.head

    def outputs() -> Any:
        variables = model.init(key, images, train=False)
        if foreign := variables.keys() - {"params", "batch_stats"}:
            raise ValueError(f"it keeps {sorted(foreign)} beside params and batch_stats")
        variables = {"batch_stats": {}, **variables}
        features, logits, _ = outputs_in_training(model, variables, images, key)
        of_head = {"params": variables["params"].get("head", {})}
        return logits, head.apply(of_head, features)

    try:
        logits, expected = jax.eval_shape(outputs)
    except Exception as error:  # whatever the user's own code may raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: {type(error).__name__}: {reason:.300}") from error
    if logits.shape != expected.shape:
        raise ValueError(
            f"{name}: expected the head's logits {expected.shape}, found {logits.shape}"
        )


def _plain_head(num_classes: int) -> nn.Dense:
    if num_classes < 1:
        raise ValueError(f"num_classes must be ≥ 1, found {num_classes}")
    return nn.Dense(num_classes, use_bias=False, kernel_init=plain_init)
