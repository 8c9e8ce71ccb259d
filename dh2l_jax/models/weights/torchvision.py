"""Weights from and for torchvision: its names and layouts ↔ the variables of `TorchvisionResNet`.

torch keeps a convolution kernel as (cout, cin, kh, kw) and a dense one as (out, in); JAX as
(kh, kw, cin, cout) and (in, out).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dh2l_jax.models.resnet_torchvision import BLOCKS, FIRST_BOTTLENECK
from dh2l_jax.models.weights.formats import read_weights
from dh2l_jax.models.weights.pickles import quote

__all__ = [
    "load_pretrained",
    "load_state_dict",
    "read_pretrained",
    "torchvision_state_dict",
]

# Ours alone: torchvision has neither our heads nor a neck before them.
_OWN = re.compile(r"params/head/.*|(params|batch_stats)/neck/.*")
_LAYER = re.compile(
    r"(?:params|batch_stats)/(?:stem|block_(?P<stage>\d+)_(?P<block>\d+))"
    r"/(?P<kind>conv|norm)(?:_(?P<number>\d+|shortcut))?/(?P<leaf>\w+)"
)
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Not ours: the classifier of ImageNet, and a counter that torch's default momentum does not use.
_DROPPED = re.compile(r"fc\.(weight|bias)|.*\.num_batches_tracked")
_MAX_NAMES = 10  # named of each kind in an error
_OTHER = "another network"


def load_pretrained(source: str | Path, variables: Any) -> Any:
    """The variables with the weights and statistics of a file of torchvision's or timm's.

    The head stays as it is; the file's 1000-class "fc" is not used.

    Args:
      source: FILE.safetensors, FILE.pth or hf://OWNER/NAME, see `formats.read_weights`.
      variables: {"params": …, "batch_stats": …} of a `TorchvisionResNet` on RGB images.

    Returns:
      Variables of the same structure, shapes, dtypes and devices.

    Raises:
      ValueError: the file is not what its name says, or not the weights of this network; missing
        and unexpected names and wrong shapes are listed.
      OSError: the file cannot be opened or downloaded.
      ImportError: the source needs an extra that is not installed.

    Reference: DH²L, §5 (ResNet-18 and ResNet-50 start from ImageNet weights).
    """
    return read_pretrained(source)(variables)


def read_pretrained(source: str | Path) -> Callable[[Any], Any]:
    """`load_pretrained` of a file that is read here: a function variables → variables."""
    state = read_weights(source)

    def load(variables: Any) -> Any:
        try:
            return load_state_dict(state, variables)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None

    return load


def load_state_dict(state: Mapping[str, np.ndarray], variables: Any) -> Any:
    """As `load_pretrained`, from torchvision's state dict itself, or that of its DataParallel."""
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    found = {name.removeprefix(prefix): value for name, value in state.items()}
    found = {name: value for name, value in found.items() if not _DROPPED.fullmatch(name)}
    leaves = _body(variables)
    if problems := "; ".join(_problems(found, leaves)):
        theirs, ours = _network(found), _network(leaves)
        theirs = "a variant of it" if theirs == ours else theirs
        raise ValueError(f"expected the weights of {ours}, found {theirs}: {problems}")

    def replace(path: tuple, leaf: Any) -> Any:
        name = _torch_name(path)
        if name is None:
            return leaf
        value = _cast(name, found[name], leaf.dtype)
        value = value.transpose(2, 3, 1, 0) if leaf.ndim == 4 else value
        committed = isinstance(leaf, jax.Array) and leaf.committed
        return jax.device_put(value, leaf.sharding) if committed else jnp.asarray(value)

    return jax.tree_util.tree_map_with_path(replace, variables)


def torchvision_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The variables as torchvision's state dict: `load_state_dict(…, strict=True)` takes it.

    Where torchvision has what we have not, the bias of "fc" and the count of batches of each norm,
    there are zeros.

    Args:
      variables: {"params": …, "batch_stats": …} of a `TorchvisionResNet` with a plain head.

    Returns:
      name → contiguous array.

    Raises:
      ValueError: another network, or another head.
    """
    head = variables["params"]["head"]
    state = {}
    for name, leaf in _body(variables).items():
        value = np.asarray(leaf)
        state[name] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    if "kernel" not in head:
        raise ValueError(f"expected a plain head, found {', '.join(head)}")
    state["fc.weight"] = np.asarray(head["kernel"]).T
    state["fc.bias"] = np.asarray(head.get("bias", np.zeros_like(state["fc.weight"][:, 0])))
    return {name: np.asarray(value, order="C") for name, value in state.items()}


def _body(variables: Any) -> dict[str, Any]:
    """torchvision's name → leaf, of everything but the head."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    named = ((_torch_name(path), leaf) for path, leaf in leaves)
    body = {name: leaf for name, leaf in named if name is not None}
    if _network(body) == _OTHER:
        raise ValueError("expected the variables of a TorchvisionResNet, found another network's")
    return body


def _torch_name(path: tuple) -> str | None:
    """params/block_1_2/conv_3/kernel → layer1.1.conv3.weight; None for the head's and neck's."""
    text = jax.tree_util.keystr(path, simple=True, separator="/")
    if _OWN.fullmatch(text):
        return None
    match = _LAYER.fullmatch(text)
    if not match:
        raise ValueError(f"expected the variables of a TorchvisionResNet, found {text!r}")
    leaf = _LEAVES[match["leaf"]]
    if match["stage"] is None:
        return f"{'conv1' if match['kind'] == 'conv' else 'bn1'}.{leaf}"
    if match["number"] == "shortcut":
        layer = "downsample.0" if match["kind"] == "conv" else "downsample.1"
    else:
        layer = ("conv" if match["kind"] == "conv" else "bn") + match["number"]
    return f"layer{match['stage']}.{int(match['block']) - 1}.{layer}.{leaf}"


def _problems(found: Mapping[str, np.ndarray], leaves: Mapping[str, Any]) -> Iterable[str]:
    """What keeps the arrays found from being used for our leaves, a phrase for each kind."""
    shapes = set()
    for name, leaf in leaves.items():
        shape = tuple(leaf.shape[axis] for axis in (3, 2, 0, 1)) if leaf.ndim == 4 else leaf.shape
        if name in found and found[name].shape != shape:
            shapes.add(f"{name} {found[name].shape} for {shape}")
    names = {
        "missing": leaves.keys() - found.keys(),
        "unexpected": {quote(name) for name in found.keys() - leaves.keys()},
        "of another shape": shapes,
    }
    for kind, group in names.items():
        if group:
            some = ", ".join(sorted(group)[:_MAX_NAMES])
            more = f" and {len(group) - _MAX_NAMES} more" if len(group) > _MAX_NAMES else ""
            yield f"{len(group)} {kind} ({some}{more})"


def _network(names: Iterable[str]) -> str:
    """The network whose weights have these names."""
    blocks = {match[0] for name in names if (match := re.match(r"layer([1-4])\.\d+\.", name))}
    counts = tuple(sum(block.startswith(f"layer{s}.") for block in blocks) for s in range(1, 5))
    deep = any(".conv3." in name for name in names)
    for depth, expected in BLOCKS.items():
        if counts == expected and deep == (depth >= FIRST_BOTTLENECK):
            return f"resnet{depth}"
    return _OTHER


def _cast(name: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The numbers in our dtype, after a check that they are numbers."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"expected floats in {name}, found {value.dtype}")
    with np.errstate(over="ignore"):
        value = value.astype(dtype)
    if not np.isfinite(value).all() or (name.endswith("running_var") and value.min() < 0):
        raise ValueError(f"expected finite numbers, and variances ≥ 0, in {name}")
    return value
