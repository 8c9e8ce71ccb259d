"""The records of a state dict: storages, tensors in them, and what a pickle may name to make them.

Every number that places a tensor in its storage is checked here before NumPy sees it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from dh2l_jax.models.weights.pickles import PthError, Vocabulary, quote, set_item

__all__ = ["MAX_AXES", "Parameter", "Storage", "Storages", "Tensor", "make_tensor", "vocabulary"]

MAX_AXES = 32
_MAX_SIZE = 2**40  # product of an empty tensor's other axes


@dataclasses.dataclass
class Storage:
    """One run of numbers, which tensors are views of; the container fills in `numbers`."""

    dtype: np.dtype
    size: int
    numbers: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage: entry (i, j) is its number offset + i·strides[0] + j·strides[1]."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def to_numpy(self) -> np.ndarray:
        """A read-only array without a copy of the numbers."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.storage.dtype)
        assert self.storage.numbers is not None
        # The stride of an axis of one entry moves nothing and may be any number.
        steps = (stride if n > 1 else 0 for n, stride in zip(self.shape, self.strides, strict=True))
        return np.lib.stride_tricks.as_strided(
            self.storage.numbers[self.offset :],
            self.shape,
            [step * self.storage.dtype.itemsize for step in steps],
            writeable=False,
        )


class Parameter:
    """Stands for a `torch.nn.Parameter`; the oldest files give its tensor with its state."""

    tensor: Tensor | None = None

    def set_state(self, state: Any) -> None:
        """Takes the tensor from the state, a tuple that begins with it."""
        match state:
            case (Tensor() as tensor, *_):  # then creator, hooks, requires_grad, volatile
                self.tensor = tensor
            case _:
                raise PthError("expected a tensor in the state of a parameter")


class Storages(dict[str, Storage]):
    """The storages that a pickle names, by their keys; their numbers come after the pickle."""

    def persistent(self, pid: Any) -> Storage:
        """The storage of ("storage", dtype, key, device, size[, view])."""
        match pid:
            case ("storage", _, _, _, _, tuple(), *_):
                raise PthError("views of storages are not supported")
            case ("storage", np.dtype() as dtype, str(key), _, int(size), *_) if size >= 0:
                storage = self.setdefault(key, Storage(dtype, size))
                if (storage.dtype, storage.size) != (dtype, size):
                    raise PthError(f"storage {quote(key)} is declared twice, differently")
                return storage
        raise PthError("refused a persistent id that names no storage")


def make_tensor(storage: Storage, offset: int, shape: tuple, strides: tuple) -> Tensor:
    """Checks that a tensor lies inside its storage.

    Raises:
      PthError: an offset, shape or stride that is no int ≥ 0; too many axes; more entries than the
        storage has, or entries outside it.

    >>> make_tensor(Storage(np.dtype("f4"), 6), 0, (2, 3), (3, 1)).shape
    (2, 3)
    """
    if len(shape) != len(strides) or len(shape) > MAX_AXES:
        raise PthError(
            f"expected at most {MAX_AXES} axes and a stride for each, found {len(shape)} axes "
            f"and {len(strides)} strides"
        )
    if any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)):
        raise PthError("expected ints ≥ 0 as offset, shape and strides of a tensor")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) > storage.size or (0 not in shape and last >= storage.size):
        raise PthError(f"a tensor does not fit in its storage of {storage.size} numbers")
    if math.prod(max(n, 1) for n in shape) > max(_MAX_SIZE, storage.size):
        raise PthError("an empty tensor has axes too long")
    return Tensor(storage, offset, shape, strides)


def _rebuild_tensor(arguments: tuple) -> Tensor:
    match arguments:
        # Behind the strides: requires_grad, hooks and metadata, which are of no use here.
        case (Storage() as storage, offset, tuple(shape), tuple(strides), *_):
            return make_tensor(storage, offset, shape, strides)
    raise PthError("expected a storage, an offset, a shape and strides in a tensor's record")


def _rebuild_parameter(arguments: tuple) -> Tensor:
    match arguments:
        case (Tensor() as tensor, *_):
            return tensor
    raise PthError("expected a tensor in a parameter's record")


def _parameter(arguments: tuple) -> Tensor | Parameter:
    return _rebuild_parameter(arguments) if arguments else Parameter()


def _ordered_dict(arguments: tuple) -> dict:
    """Python 3 calls OrderedDict() and sets the items later, Python 2 passes a list of pairs."""
    match arguments:
        case ():
            pairs = []
        case (list() as items,):
            # A list serves once: a few bytes that recall it would copy it again and again.
            pairs, items[:] = items[:], []
        case _:
            raise PthError("expected a list of pairs in an OrderedDict")
    result: dict = {}
    for pair in pairs:
        match pair:
            case (key, value):
                set_item(result, key, value)
            case _:
                raise PthError("expected pairs in the list of an OrderedDict")
    return result


def _set_state(value: Any, state: Any) -> None:
    """State of a Parameter; that of a dict (torch's `_metadata`) or tensor is of no use here."""
    if isinstance(value, Parameter):
        value.set_state(state)
    elif not isinstance(value, dict | Tensor):
        raise PthError(f"refused to set the state of {type(value).__name__}")


_DTYPES = {
    "Float": np.dtype("<f4"),
    "Double": np.dtype("<f8"),
    "Half": np.dtype("<f2"),
    "BFloat16": np.dtype(jnp.bfloat16),
    "Long": np.dtype("<i8"),
    "Int": np.dtype("<i4"),
    "Short": np.dtype("<i2"),
    "Char": np.dtype("i1"),
    "Byte": np.dtype("u1"),
    "Bool": np.dtype("?"),
}

_VALUES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,
} | {
    (module, name + kind): dtype
    for module in ("torch", "torch.cuda")
    for name, dtype in _DTYPES.items()
    for kind in ("Storage", "Tensor")  # the tar format names the types of tensors
}


def vocabulary(persistent) -> Vocabulary:
    """What a state dict's pickle may name, with `persistent` for its persistent ids."""
    return Vocabulary(_VALUES, persistent, _set_state)
