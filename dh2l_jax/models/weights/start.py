"""Weights of a network for another of the same body, found by the paths of our variables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dh2l_jax.models.weights.pickles import quote
from dh2l_jax.models.weights.torchvision import load_state_dict

__all__ = ["read_metadata", "start_from"]

_HEAD = re.compile(r"params/head/.*|(params|batch_stats)/neck/.*")
_MAX_HEADER = 10**8  # bytes, as safetensors has it


def start_from(
    tensors: Mapping[str, np.ndarray], variables: Any, *, same_classes: bool
) -> tuple[Any, bool]:
    """The variables with the numbers of others, and whether those of the head are among them.

    Args:
      tensors: path, such as "params/block_1_1/conv_1/kernel", → array; or torchvision's state dict,
        whose classifier is not used.
      variables: {"params": …, "batch_stats": …} with the head, and its neck, as they are anew.
      same_classes: whether a head that fits is taken too.

    Raises:
      ValueError: it is another network; missing and unexpected paths and shapes are listed.
    """
    if not any(name.startswith("params/") for name in tensors):
        return load_state_dict(tensors, variables), False
    leaves = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}
    heads = [{p for p in names if _HEAD.fullmatch(p)} for names in (leaves, tensors)]
    taken = same_classes and heads[0] == heads[1]
    taken &= all(tensors[p].shape == leaves[p].shape for p in heads[0] if taken)
    found = {p: a for p, a in tensors.items() if taken or p not in heads[1]}
    expected = {p: leaf for p, leaf in leaves.items() if taken or p not in heads[0]}
    wrong = [f"{quote(p)} is missing" for p in expected.keys() - found.keys()]
    wrong += [f"{quote(p)} is not expected" for p in found.keys() - expected.keys()]
    wrong += [
        f"{quote(p)} has the shape {found[p].shape}, expected {expected[p].shape}"
        for p in expected.keys() & found.keys()
        if found[p].shape != expected[p].shape
    ]
    wrong += [f"{quote(p)} is not finite" for p, a in found.items() if not np.isfinite(a).all()]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(f"the weights of another network: {sorted(wrong)[0]}{more}")

    def place(path: tuple, leaf: Any) -> Any:
        if _path(path) not in found:
            return leaf
        value = np.asarray(found[_path(path)], leaf.dtype)
        committed = isinstance(leaf, jax.Array) and leaf.committed
        return jax.device_put(value, leaf.sharding) if committed else jax.numpy.asarray(value)

    return jax.tree_util.tree_map_with_path(place, variables), taken


def read_metadata(path: Path) -> dict[str, Any]:
    """What a safetensors file says of its network, as `export_safetensors` wrote it; {} if nothing.

    Raises:
      OSError: it cannot be read.
    """
    with path.expanduser().open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(size) if size <= _MAX_HEADER else b"{}"
    try:
        found = json.loads(header)["__metadata__"]
        return {**found, "tree": json.loads(found["tree"])}
    except (ValueError, KeyError, TypeError):
        return {}


def _path(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
