"""Files of weights by what they are called: safetensors, `.pth`, or one of the Hugging Face Hub."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from dh2l_jax.checks import unknown_name
from dh2l_jax.files import write_atomically
from dh2l_jax.models.resnet_torchvision import BLOCKS
from dh2l_jax.models.weights.pickles import quote
from dh2l_jax.models.weights.pth import read_state_dict

__all__ = ["read_weights", "write_safetensors"]

_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
    "BOOL": np.bool_,
}  # fmt: skip
_HUB = re.compile(r"hf://(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_PLAIN = [f"resnet{depth}" for depth in BLOCKS]


def read_weights(source: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file by name: name → array.

    Args:
      source: FILE.safetensors; a file of torch (see `pth.read_state_dict`); or a repository of the
        Hugging Face Hub, hf://OWNER/NAME or hf://OWNER/NAME@REVISION, whose model.safetensors is
        downloaded once, without an account.

    Raises:
      ValueError: the file is damaged, or not what its name says.
      OSError: it cannot be opened or downloaded.
      ImportError: it needs an extra that is not installed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_safetensors(Path(folder) / "x.safetensors", {"a": np.ones(2)}, {})
    ...     read_weights(path)
    {'a': array([1., 1.])}
    """
    hub = str(source).startswith("hf:")
    path = _download(str(source)) if hub else Path(source).expanduser()
    return _read_safetensors(path) if path.suffix == ".safetensors" else read_state_dict(path)


def write_safetensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> Path:
    """Writes a file, whole or not at all; an older one is replaced.

    Raises:
      OSError: the file cannot be written.
      ImportError: safetensors is not installed.
    """
    try:
        from safetensors.numpy import save
    except ImportError:
        raise ImportError("no safetensors: pip install 'dh2l_jax[export]'") from None
    data = save(dict(tensors), metadata=dict(metadata))
    path = Path(path).expanduser()
    write_atomically(path, data)
    return path


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors import SafetensorError, deserialize
    except ImportError:
        raise ImportError("no safetensors: pip install 'dh2l_jax[export]'") from None
    tensors = {}
    try:
        for name, tensor in deserialize(path.read_bytes()):
            # By the header, since safetensors.numpy has no bfloat16.
            if (dtype := tensor["dtype"]) not in _DTYPES:
                raise ValueError(f"tensors of type {dtype} are not supported")
            numbers = np.frombuffer(tensor["data"], _DTYPES[dtype])
            tensors[name] = numbers.reshape(tensor["shape"])
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: no safetensors file, or damaged: {quote(str(error))}") from None
    return tensors


def _download(address: str) -> Path:
    """The file in the cache of huggingface_hub."""
    match = _HUB.fullmatch(address)
    if not match:
        raise ValueError(f"expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION, found {address!r}")
    architecture = match["name"].split(".")[0]
    # timm's variants, resnetblur50 say, may bear the names and shapes of a plain network.
    if match["owner"] == "timm" and architecture not in _PLAIN:
        raise ValueError(f"{address}: {unknown_name('network', architecture, _PLAIN)}")
    # Read at its import: else the Hub is also told of torch's version and of tools around Python.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise ImportError("no huggingface_hub: pip install 'dh2l_jax[hub]'") from None
    repository, revision = f"{match['owner']}/{match['name']}", match["revision"]
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)  # what it warns of before it gives up is in the error too
    try:
        file = hf_hub_download(repository, "model.safetensors", revision=revision, token=False)
    except Exception as error:  # of the network, the server, the cache or the repository's name
        reason = " ".join(str(error).split())[:300]
        raise OSError(f"{address}: not downloaded: {reason!r}") from error
    finally:
        log.setLevel(level)
    return Path(file)
