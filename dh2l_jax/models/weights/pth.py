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
from dh2l_jax.models.weights.pickles import Parameter, PthError, Tensor, quote

__all__ = ["PthError", "read_state_dict"]

_MAX_BYTES = 2**32
_WRAPPERS = ("state_dict", "model")  # where a checkpoint of a training keeps the weights


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a `.pth` file by name: name → read-only array, in the order of the file.

    Memory: the file once. The arrays are views of it, kept for as long as one of them is.

    Args:
      path: a file written by any torch since 2016: zip, stream or tar format. Of a checkpoint, the
        state dict under "state_dict" or "model" is read. A name such as "resnet18-5c106cde.pth"
        promises the first digits, 8 or more, of the file's sha256, which are checked.

    Raises:
      PthError: the file is damaged, larger than 4 GiB, or holds anything but tensors.
      OSError: it cannot be opened.
    """
    path = Path(path).expanduser()
    try:
        data = _read_bytes(path)
        _check_name(path.name, data)
        return _arrays(read_container(data))
    except PthError as error:
        raise PthError(f"{path}: {error}") from error.__cause__


def _read_bytes(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):
        raise PthError("expected a regular file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MAX_BYTES:
            raise PthError(f"expected at most {_MAX_BYTES} bytes, found {size}")
        return file.read(size)


def _check_name(name: str, data: bytes) -> None:
    if promise := re.search(r"-([0-9a-f]{8,64})\.pth\Z", name):
        found = hashlib.sha256(data).hexdigest()[: len(promise[1])]
        if found != promise[1]:
            raise PthError(
                f"expected a sha256 that begins with {promise[1]}, as the name says, found "
                f"{found}: the file is damaged or another one"
            )


def _arrays(state: Any) -> dict[str, np.ndarray]:
    if isinstance(state, dict):
        wrapped = (state.get(name) for name in _WRAPPERS)
        state = next((value for value in wrapped if isinstance(value, dict)), state)
    if not isinstance(state, dict):
        raise PthError(f"expected a state dict, found {type(state).__name__}")
    return {name: _array(name, value) for name, value in state.items()}


def _array(name: Any, value: Any) -> np.ndarray:
    if not (isinstance(name, str) and name.isprintable()):
        raise PthError(f"expected printable names, found {quote(str(name))}")
    tensor = value.tensor if isinstance(value, Parameter) else value
    if not isinstance(tensor, Tensor):
        raise PthError(f"expected a tensor under {quote(name)}, found {type(value).__name__}")
    return tensor.to_numpy()
