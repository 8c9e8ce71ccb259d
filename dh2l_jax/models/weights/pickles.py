"""The pickles of a `.pth` file: Python's own unpickler, which knows tensors here and nothing else.

A closed `find_class` alone does not make `pickle.Unpickler` safe: a few bytes let its C code fill
gigabytes (a far slot of the memo), overflow the C stack (a deep tuple as a key), hash a tuple that
holds itself a thousand times over, or set attributes of what `find_class` gave. A scan ahead with
`pickletools` would have to follow the stack to tell what becomes a key. So this is the unpickler in
Python that stands beside it, `pickle._Unpickler`, the class that joblib extends too: it finds each
opcode in a table, narrowed here to those of a state dict, and its memo is a dict. Every dict it
makes takes only keys that cost nothing to hash, and what a pickle calls has a fixed number of
arguments, so that no opcode does more work than the bytes that made its operands.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pickle
import struct
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

__all__ = ["MAX_AXES", "MAX_SIZE", "Cursor", "Parameter", "PthError", "Storage", "Tensor", "quote"]

MAX_AXES = 32
MAX_SIZE = 2**40  # entries of a storage, and product of an empty tensor's other axes
_MAX_LINE = 256
_MAX_PICKLE = 2**21  # bytes; that of ResNet-101 has 0.1 MB, and a byte may cost 100 in memory


class PthError(ValueError):
    """The file is no state dict, is damaged, or asks for more than a state dict needs."""


def quote(text: str) -> str:
    """A name from a file, short and on one line, for a message."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


class Cursor:
    """A position in the bytes of a file, which moves over pickles, numbers and arrays."""

    def __init__(self, data: memoryview, persistent: Callable[[Any], Any]) -> None:
        self.data, self.position, self.end = data, 0, len(data)
        self.persistent = persistent

    def pickle(self) -> Any:
        """The value of the pickle here; in it, `persistent` gives what an id stands for."""
        self.end = min(len(self.data), self.position + _MAX_PICKLE)
        try:
            return _Unpickler(self).load()
        except PthError:
            raise
        except Exception as error:  # whatever a hostile pickle makes of the operands
            raise PthError(f"damaged pickle: {quote(str(error))}") from error
        finally:
            self.end = len(self.data)

    def numbers(self, layout: str) -> tuple:
        """The next numbers, in a layout of `struct`."""
        return struct.unpack(layout, self.view(struct.calcsize(layout)))

    def view(self, count: int) -> memoryview:
        """The next bytes."""
        if not 0 <= count <= self.end - self.position:
            raise PthError(f"cut short: expected {count} bytes at {self.position} of {self.end}")
        self.position += count
        return self.data[self.position - count : self.position]

    def array(self, dtype: np.dtype, size: int) -> np.ndarray:
        """The next numbers, not copied."""
        return np.frombuffer(self.view(size * dtype.itemsize), dtype)

    def read(self, count: int) -> bytes:
        """The next bytes, as the unpickler asks for them."""
        return bytes(self.view(count))

    def readline(self) -> bytes:
        """The bytes up to a line feed."""
        line = bytes(self.data[self.position : self.position + _MAX_LINE])
        if b"\n" not in line:
            raise PthError("a name in a pickle has no end")
        return self.read(line.index(b"\n") + 1)


@dataclasses.dataclass(eq=False)
class Storage:
    """One run of numbers, which tensors are views of; the container fills in `numbers`."""

    dtype: np.dtype
    size: int
    numbers: Any = None


class Tensor:
    """A view of a storage: entry (i, j) is its number offset + i·strides[0] + j·strides[1]."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any) -> None:
        """Checks every number that places the tensor in its storage, before NumPy sees it."""
        if not (isinstance(storage, Storage) and type(shape) is type(strides) is tuple):
            raise PthError("expected a storage, an offset, a shape and strides of a tensor")
        if not len(shape) == len(strides) <= MAX_AXES:
            raise PthError(f"expected at most {MAX_AXES} axes of a tensor, and as many strides")
        if any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)):
            raise PthError("expected ints ≥ 0 as offset, shape and strides of a tensor")
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if math.prod(shape) > storage.size or (0 not in shape and last >= storage.size):
            raise PthError(f"a tensor does not fit in its storage of {storage.size} numbers")
        if math.prod(max(n, 1) for n in shape) > MAX_SIZE:
            raise PthError("an empty tensor has axes too long")
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def to_numpy(self) -> np.ndarray:
        """A read-only array without a copy of the numbers."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.storage.dtype)
        numbers = self.storage.numbers[self.offset :]
        # The stride of an axis of one entry moves nothing and may be any number.
        steps = (step if n > 1 else 0 for n, step in zip(self.shape, self.strides, strict=True))
        strides = [step * numbers.itemsize for step in steps]
        return np.lib.stride_tricks.as_strided(numbers, self.shape, strides, writeable=False)


class Parameter:
    """A `torch.nn.Parameter` of 2016, whose tensor comes with its state."""

    tensor: Tensor | None = None


class Dict(dict):
    """Takes str and small ints as keys, whose hashes no file can make collide."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if not (type(key) is str or (type(key) is int and abs(key) < 2**31)):
            raise PthError(f"expected a str or a small int as key, found {type(key).__name__}")
        super().__setitem__(key, value)


def _tensor(  # pickles call this; gradients, hooks and metadata are of no use here
    storage, offset, shape, strides, grad=None, hooks=None, metadata=None
) -> Tensor:
    return Tensor(storage, offset, shape, strides)


def _parameter(data=None, grad=None, hooks=None) -> Tensor | Parameter:
    if not isinstance(data, Tensor | None):
        raise PthError(f"expected a tensor in a parameter, found {type(data).__name__}")
    return data or Parameter()


def _ordered_dict(pairs=None) -> Dict:
    """Python 3 calls OrderedDict() and sets the items later, Python 2 passes a list of pairs."""
    if not isinstance(pairs, list | None):
        raise PthError(f"expected a list of pairs in an OrderedDict, found {type(pairs).__name__}")
    result, items = Dict(), pairs or []
    for key, value in items:
        result[key] = value
    items.clear()  # once: a few bytes that recall the list would copy it again and again
    return result


_DTYPES = {
    "Double": "<f8", "Float": "<f4", "Half": "<f2", "BFloat16": jnp.bfloat16,
    "Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "i1", "Byte": "u1", "Bool": "?",
}  # fmt: skip
_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,
} | {
    (module, name + kind): np.dtype(dtype)
    for module in ("torch", "torch.cuda")
    for name, dtype in _DTYPES.items()
    for kind in ("Storage", "Tensor")  # the tar format names the types of tensors
}


_PythonUnpickler: Any = pickle._Unpickler  # typed as the one in C, which has other inner names


class _Unpickler(_PythonUnpickler):
    def __init__(self, file: Cursor) -> None:
        super().__init__(file, encoding="utf-8")  # of Python 2's str
        self.persistent_load = file.persistent

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GLOBALS:
            raise PthError(f"refused {quote(f'{module} {name}')}, no part of a state dict")
        return _GLOBALS[module, name]

    def load_empty_dict(self) -> None:
        self.append(Dict())

    def load_frame(self) -> None:
        self.read(8)  # the promised size, which would only let the unpickler read ahead

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if type(arguments) is not tuple:
            raise PthError(f"refused a call with {type(arguments).__name__}")
        self.stack[-1] = function(*arguments)

    def load_build(self) -> None:
        match (state := self.stack.pop()), (value := self.stack[-1]):
            case (Tensor(), *_), Parameter():  # then creator, hooks, requires_grad, volatile
                value.tensor = state[0]
            case _, Dict() | Tensor():
                pass  # torch's `_metadata`, and what old files say of a parameter behind its tensor
            case _:
                raise PthError(f"refused to set the state of {type(value).__name__}")

    def load_refused(self, opcode: int) -> None:
        raise PthError(f"refused the pickle opcode {bytes([opcode])!r}")


_KEPT = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT),
    *(pickle.BINUNICODE, pickle.SHORT_BINUNICODE),
    *(pickle.INT, pickle.BINSTRING, pickle.SHORT_BINSTRING),  # Python 2's long int, and its str
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.SETITEM, pickle.SETITEMS),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID),
)
_Unpickler.dispatch = (
    {code: functools.partial(_Unpickler.load_refused, opcode=code) for code in range(256)}
    | {opcode[0]: _PythonUnpickler.dispatch[opcode[0]] for opcode in _KEPT}
    | {
        pickle.EMPTY_DICT[0]: _Unpickler.load_empty_dict,
        pickle.FRAME[0]: _Unpickler.load_frame,
        pickle.REDUCE[0]: _Unpickler.load_reduce,
        pickle.NEWOBJ[0]: _Unpickler.load_reduce,
        pickle.BUILD[0]: _Unpickler.load_build,
    }
)
