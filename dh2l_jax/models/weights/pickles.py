"""An interpreter of pickles that runs nothing: the opcodes of a state dict, and no other.

`pickle.Unpickler` with a closed `find_class` is not enough for files of strangers: a few bytes make
it fill gigabytes (a far slot of the memo), hash a tuple that holds itself a thousand times over, or
overflow the C stack. Here an opcode outside the table is refused, a global is looked up in the
caller's table and never imported, nested values are never hashed, compared or printed, and no
opcode does more work than the bytes that made its operands.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = ["MAX_PICKLE", "PthError", "Vocabulary", "load", "quote", "set_item"]

MAX_PICKLE = 2**21
"""Largest pickle in bytes; that of ResNet-101 has 0.1 MB, and a byte may cost 100 in memory."""

_MAX_INT_BYTES = 16  # the magic number of the stream format has 10
_MAX_LINE = 256


class PthError(ValueError):
    """The file is no state dict, is damaged, or asks for more than a state dict needs."""


class Vocabulary(NamedTuple):
    """What a pickle may name.

    Attributes:
      values: (module, name) → what stands for the global; a function takes the tuple of arguments.
      persistent: persistent id → value.
      set_state: object, state → None.
    """

    values: Mapping[tuple[str, str], Any]
    persistent: Callable[[Any], Any]
    set_state: Callable[[Any, Any], None]


def load(data: memoryview, start: int, vocabulary: Vocabulary) -> tuple[Any, int]:
    """Interprets the pickle that begins at `start`.

    Args:
      data: bytes of the file.
      start: position of the pickle's first byte.
      vocabulary: what it may name.

    Returns:
      The value, made of None, bool, int, float, str, tuple, list, dict and what the vocabulary
      gives; and the position behind the pickle.

    Raises:
      PthError: anything else than such a value.

    >>> nothing = Vocabulary({}, lambda pid: None, lambda value, state: None)
    >>> load(memoryview(pickle.dumps({"a": [1, 2.5]}, 2)), 0, nothing)
    ({'a': [1, 2.5]}, 31)
    >>> load(memoryview(pickle.dumps(eval, 2)), 0, nothing)
    Traceback (most recent call last):
    dh2l_jax.models.weights.pickles.PthError: refused '__builtin__ eval', no part of a state dict
    """
    machine = _Machine(data[start : start + MAX_PICKLE], vocabulary)
    return machine.run(), start + machine.position


def set_item(target: dict, key: Any, value: Any) -> None:
    """Sets an item whose key is a str or a small int, the keys whose hashes no file can collide."""
    small = type(key) is int and abs(key) < 2**31
    if not (small or type(key) is str):
        raise PthError(f"expected a str or a small int as key, found {_kind(key)}")
    target[key] = value


def quote(text: str) -> str:
    """A name from a file, short and on one line, for a message."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _kind(value: Any) -> str:
    return type(value).__name__


class _Machine:
    """The stack, the marks in it and the memo; a method for each kind of opcode."""

    def __init__(self, data: memoryview, vocabulary: Vocabulary) -> None:
        self.data, self.position = data, 0
        self.vocabulary = vocabulary
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while (opcode := bytes(self.take(1))) != pickle.STOP:
            if opcode not in _ACTIONS:
                raise PthError(f"refused the pickle opcode {opcode!r} at byte {self.position - 1}")
            action, *arguments = _ACTIONS[opcode]
            action(self, *arguments)
        return self.pop()

    # Reading

    def take(self, count: int) -> memoryview:
        if not 0 <= count <= len(self.data) - self.position:
            raise PthError(f"a pickle is cut short, or longer than {MAX_PICKLE} bytes")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, count: int) -> str:
        try:
            return str(self.take(count), "utf-8")
        except UnicodeDecodeError as error:
            raise PthError("expected text in UTF-8 in a pickle") from error

    def line(self) -> str:
        window = bytes(self.data[self.position : self.position + _MAX_LINE])
        end = window.find(b"\n")
        if end < 0:
            raise PthError("a name in a pickle has no end")
        text = self.text(end)
        self.take(1)
        return text

    # The stack: nothing below the latest mark is in reach

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise PthError("a pickle takes more than it has put on its stack")
        return self.stack[-1]

    def pop(self) -> Any:
        value = self.top()
        del self.stack[-1]
        return value

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise PthError("a pickle takes more than it has put on its stack")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    # Opcodes

    def check_protocol(self) -> None:
        protocol = self.number("<B")
        if not 2 <= protocol <= pickle.HIGHEST_PROTOCOL:
            raise PthError(f"expected a pickle of protocol 2 to 5, found {protocol}")

    def push_new(self, kind: type) -> None:
        self.push(kind())

    def push_number(self, layout: str) -> None:
        self.push(self.number(layout))

    def push_decimal(self) -> None:
        line = self.line()
        if not re.fullmatch(r"-?[0-9]{1,20}", line):
            raise PthError(f"expected an int of at most 20 digits, found {quote(line)}")
        self.push(int(line))

    def push_long(self) -> None:
        count = self.number("<B")
        if count > _MAX_INT_BYTES:
            raise PthError(f"expected an int of at most {_MAX_INT_BYTES} bytes, found {count}")
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    def push_text(self, layout: str) -> None:
        self.push(self.text(self.number(layout)))

    def push_mark(self) -> None:
        self.marks.append(len(self.stack))

    def push_tuple(self, count: int | None) -> None:
        """A tuple of the topmost `count` values, or of all above the mark."""
        values = self.pop_to_mark() if count is None else [self.pop() for _ in range(count)][::-1]
        self.push(tuple(values))

    def append(self) -> None:
        self.extend([self.pop()])

    def extend(self, values: list[Any] | None = None) -> None:
        values = self.pop_to_mark() if values is None else values
        target = self.top()
        if type(target) is not list:
            raise PthError(f"expected a list to append to, found {_kind(target)}")
        target += values

    def set_one(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_many([key, value])

    def set_many(self, values: list[Any] | None = None) -> None:
        values = self.pop_to_mark() if values is None else values
        target = self.top()
        if type(target) is not dict or len(values) % 2:
            raise PthError(f"expected pairs for a dict, found {len(values)} for {_kind(target)}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            set_item(target, key, value)

    def remember(self, layout: str | None) -> None:
        self.memo[self.number(layout) if layout else len(self.memo)] = self.top()

    def recall(self, layout: str) -> None:
        slot = self.number(layout)
        if slot not in self.memo:
            raise PthError(f"a pickle recalls what it never stored, slot {slot}")
        self.push(self.memo[slot])

    def push_global_of_lines(self) -> None:
        self.push_global(self.line(), self.line())

    def push_global_of_stack(self) -> None:
        name, module = self.pop(), self.pop()
        self.push_global(module, name)

    def push_global(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise PthError(f"refused a global named by {_kind(module)} and {_kind(name)}")
        if (module, name) not in self.vocabulary.values:
            kind = next((kind for kind, part in _UNSUPPORTED.items() if part in name), None)
            why = f"{kind} tensors are not supported" if kind else "no part of a state dict"
            raise PthError(f"refused {quote(f'{module} {name}')}, {why}")
        self.push(self.vocabulary.values[module, name])

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not callable(function) or type(arguments) is not tuple:
            raise PthError(f"refused a call of {_kind(function)} with {_kind(arguments)}")
        self.push(function(arguments))

    def set_state(self) -> None:
        state = self.pop()
        self.vocabulary.set_state(self.top(), state)

    def push_persistent(self) -> None:
        self.push(self.vocabulary.persistent(self.pop()))


_UNSUPPORTED = {"quantised": "qtensor", "sparse": "sparse"}  # part of the global's name

_ACTIONS: dict[bytes, tuple] = {
    pickle.PROTO: (_Machine.check_protocol,),
    pickle.FRAME: (_Machine.take, 8),  # the promised size of a frame is of no use here
    pickle.NONE: (_Machine.push, None),
    pickle.NEWTRUE: (_Machine.push, True),
    pickle.NEWFALSE: (_Machine.push, False),
    pickle.EMPTY_DICT: (_Machine.push_new, dict),
    pickle.EMPTY_LIST: (_Machine.push_new, list),
    pickle.EMPTY_TUPLE: (_Machine.push_new, tuple),
    pickle.BININT: (_Machine.push_number, "<i"),
    pickle.BININT1: (_Machine.push_number, "<B"),
    pickle.BININT2: (_Machine.push_number, "<H"),
    pickle.BINFLOAT: (_Machine.push_number, ">d"),
    pickle.INT: (_Machine.push_decimal,),  # Python 2's int of more than 4 bytes, in tar files
    pickle.LONG1: (_Machine.push_long,),
    pickle.BINUNICODE: (_Machine.push_text, "<I"),
    pickle.SHORT_BINUNICODE: (_Machine.push_text, "<B"),
    pickle.BINSTRING: (_Machine.push_text, "<i"),  # Python 2's str
    pickle.SHORT_BINSTRING: (_Machine.push_text, "<B"),
    pickle.MARK: (_Machine.push_mark,),
    pickle.TUPLE: (_Machine.push_tuple, None),
    pickle.TUPLE1: (_Machine.push_tuple, 1),
    pickle.TUPLE2: (_Machine.push_tuple, 2),
    pickle.TUPLE3: (_Machine.push_tuple, 3),
    pickle.APPEND: (_Machine.append,),
    pickle.APPENDS: (_Machine.extend,),
    pickle.SETITEM: (_Machine.set_one,),
    pickle.SETITEMS: (_Machine.set_many,),
    pickle.BINPUT: (_Machine.remember, "<B"),
    pickle.LONG_BINPUT: (_Machine.remember, "<I"),
    pickle.MEMOIZE: (_Machine.remember, None),
    pickle.BINGET: (_Machine.recall, "<B"),
    pickle.LONG_BINGET: (_Machine.recall, "<I"),
    pickle.GLOBAL: (_Machine.push_global_of_lines,),
    pickle.STACK_GLOBAL: (_Machine.push_global_of_stack,),
    pickle.REDUCE: (_Machine.call,),
    pickle.NEWOBJ: (_Machine.call,),
    pickle.BUILD: (_Machine.set_state,),
    pickle.BINPERSID: (_Machine.push_persistent,),
}
