"""Reading a `.pth` file of tensors, as `torch.save` writes them, without torch and without risk.

`torch.load` runs whatever a file tells it to, and in its safe mode refuses the files of 2016, the
paper's weights among them. This reader knows all three formats and runs nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np

from dh2l_jax.models.weights.containers import read_container
from dh2l_jax.models.weights.pickles import PthError, quote
from dh2l_jax.models.weights.tensors import Parameter, Tensor

__all__ = ["MAX_BYTES", "PthError", "read_state_dict"]

MAX_BYTES = 2**32


def read_state_dict(
    path: str | Path, *, verify_name: bool = True, max_bytes: int = MAX_BYTES
) -> dict[str, np.ndarray]:
    """The tensors of a `.pth` file by name.

    Memory: the file once. The arrays are views of it, kept for as long as one of them is.

    Args:
      path: a file written by any torch since 2016: zip, stream or tar format. A checkpoint with
        the state dict under "state_dict" is read too.
      verify_name: a name that ends in "-<8 or more hex digits>.pth", such as
        "resnet18-5c106cde.pth", promises the first digits of the file's sha256: check them. Other
        names promise nothing and are not checked.
      max_bytes: largest size of the file.

    Returns:
      name → read-only array, in the order of the file.

    Raises:
      PthError: the file is damaged, too large, or holds anything but tensors.
      OSError: it cannot be opened.
    """
    path = Path(path).expanduser()
    try:
        data = _read_bytes(path, max_bytes)
        if verify_name:
            _check_name(path.name, data)
        return _arrays(read_container(data))
    except PthError as error:
        raise PthError(f"{path}: {error}") from error.__cause__


def _read_bytes(path: Path, max_bytes: int) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):
        raise PthError("expected a regular file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise PthError(f"expected at most {max_bytes} bytes, found {size}")
        return file.read(size)


def _check_name(name: str, data: bytes) -> None:
    promise = re.search(r"-([0-9a-f]{8,64})\.pth\Z", name)
    if promise is None:
        return
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(promise[1]):
        raise PthError(
            f"expected a sha256 that begins with {promise[1]}, as the name says, found "
            f"{digest[: len(promise[1])]}: the file is damaged or another one"
        )


def _arrays(state: Any) -> dict[str, np.ndarray]:
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise PthError(f"expected a state dict, found {type(state).__name__}")
    return {_name(key): _array(key, value) for key, value in state.items()}


def _name(key: Any) -> str:
    if not isinstance(key, str):
        raise PthError(f"expected names of tensors, found {type(key).__name__}")
    return key


def _array(name: str, value: Any) -> np.ndarray:
    tensor = value.tensor if isinstance(value, Parameter) else value
    if not isinstance(tensor, Tensor):
        raise PthError(f"expected a tensor under {quote(name)}, found {type(value).__name__}")
    return tensor.to_numpy()
