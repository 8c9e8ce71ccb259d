"""Our networks for others: any of them as one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from dh2l_jax.models.heads import (
    FrameHead,
    HierarchicalHead,
    NodeHead,
    SphereHead,
    dense_kernel,
)
from dh2l_jax.models.layers import Network
from dh2l_jax.models.resnet_torchvision import TorchvisionResNet
from dh2l_jax.models.weights.formats import write_safetensors
from dh2l_jax.models.weights.torchvision import torchvision_state_dict

__all__ = ["export_safetensors", "has_torch_names"]

_NAMES = {
    HierarchicalHead: "hierarchical",
    FrameHead: "fixed",
    SphereHead: "sphere",
    NodeHead: "marginalising",
}


def export_safetensors(
    path: str | Path,
    model: Network,
    variables: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes the variables of a network with a plain head that gives the same logits.

    Any head becomes one kernel, a hierarchical one w_i = w_s,i − w_c,g(i) (`dense_kernel`), but
    that of a conditional soft-max, which is kept as it is. A network of torchvision's becomes its
    state dict, which `load_state_dict(…, strict=True)` takes. Any other, and one with a neck or a
    conditional soft-max, keeps our layout and the paths of our variables as names,
    "params/block_1_1/conv_1/kernel": `flax.traverse_util.unflatten_dict(load_file(path), sep="/")`
    are the variables of `create(name, num_classes=C)`, with the neck's beside them.

    Args:
      path: the file; an older one is replaced.
      model: the network.
      variables: its {"params": …, "batch_stats": …}.
      metadata: more to put beside "format", "names" (whose the names are) and "head" (what it was).

    Returns:
      The path.

    Raises:
      OSError: the file cannot be written.
      ImportError: safetensors is not installed.
    """
    head = model.head
    facts = {"format": "flax", "names": "dh2l_jax", "head": "plain"}
    if not _is_linear(head):
        facts["head"] = "a conditional soft-max: a column a node, by its id"
    elif type(head) in _NAMES:
        params = variables["params"]
        kernel = dense_kernel({"head": params.get("head", {})}, head)
        variables = {**variables, "params": {**params, "head": {"kernel": kernel}}}
        facts["head"] = f"the kernel of a {_NAMES[type(head)]} head"
    if has_torch_names(model):
        facts |= {"format": "pt", "names": "torchvision"}
        tensors = torchvision_state_dict(variables)
    else:
        leaves = jax.tree_util.tree_leaves_with_path(variables)
        tensors = {
            jax.tree_util.keystr(place, simple=True, separator="/"): np.asarray(leaf, order="C")
            for place, leaf in leaves
        }
    return write_safetensors(path, tensors, {**(metadata or {}), **facts})


def has_torch_names(model: Network) -> bool:
    """Whether the file of a network has torchvision's names."""
    return isinstance(model, TorchvisionResNet) and model.neck is None and _is_linear(model.head)


def _is_linear(head: nn.Module) -> bool:
    return not (isinstance(head, NodeHead) and head.kind == "conditional")
