"""Our networks for others: any of them as one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dh2l_jax.models.heads import HierarchicalHead, dense_kernel
from dh2l_jax.models.layers import Network
from dh2l_jax.models.resnet_torchvision import TorchvisionResNet
from dh2l_jax.models.weights.formats import write_safetensors
from dh2l_jax.models.weights.torchvision import torchvision_state_dict

__all__ = ["export_safetensors"]


def export_safetensors(
    path: str | Path,
    model: Network,
    variables: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes the variables of a network with a plain head that gives the same logits.

    A hierarchical head becomes its one kernel w_i = w_s,i − w_c,g(i) (`dense_kernel`). A network of
    torchvision's becomes its state dict, which `load_state_dict(…, strict=True)` takes. Any other
    keeps our layout and the paths of our variables as names, "params/block_1_1/conv_1/kernel":
    `flax.traverse_util.unflatten_dict(load_file(path), sep="/")` are the variables of
    `create(name, num_classes=C)`.

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
    if isinstance(head, HierarchicalHead):
        options = {name: getattr(head, name) for name in ("center", "epsilon", "logits")}
        kernel = dense_kernel(variables["params"], head.hierarchy, **options)
        variables = {**variables, "params": {**variables["params"], "head": {"kernel": kernel}}}
        facts["head"] = "the kernel of a hierarchical head"
    if isinstance(model, TorchvisionResNet):
        facts |= {"format": "pt", "names": "torchvision"}
        tensors = torchvision_state_dict(variables)
    else:
        leaves = jax.tree_util.tree_leaves_with_path(variables)
        tensors = {
            jax.tree_util.keystr(place, simple=True, separator="/"): np.asarray(leaf, order="C")
            for place, leaf in leaves
        }
    return write_safetensors(path, tensors, {**(metadata or {}), **facts})
