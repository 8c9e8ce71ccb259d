"""Reads off the text of a compiled program what it costs: launches, FLOPs, bytes, collectives.

XLA prints the scheduled program: a computation per body of a loop, per fusion, and ENTRY. Loops are
unrolled here, a body counts once for each turn; XLA's own `cost_analysis` counts it once, and says
nothing of a program for CUDA.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Counts", "count"]

# Instructions that do nothing on the device; so do those that end what another started, "…-done".
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "domain", "add-dependency",
}  # fmt: skip
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
)
SLICES = ("slice", "dynamic-slice", "gather")
# Instructions that change a part of their first operand, in place → which operand is the part.
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
NO_READING = ("broadcast", "iota", "rng-bit-generator")

ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
TURNS = re.compile(r'known_trip_count"?\s*:\s*\{\s*"?n"?\s*:\s*"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a program costs on one device, loops unrolled.

    Attributes:
      launches: instructions that do work: on a GPU kernels, library calls and copies; on a TPU the
        steps of one program that is launched once.
      flops: of matrix products and convolutions, by the precision of their operands: "f32",
        "f64", "bf16", …; of f32 "f32 highest", "f32 high" and such, where they are asked for.
      bytes: read and written in the device's memory by all launches, slices as their own size.
      collectives: kind → how many, and the bytes of them on this device: what goes in, of an
        all-gather what comes out.
      unknown_loops: loops whose turns the text does not tell, counted as one turn.
    """

    launches: int = 0
    flops: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    bytes: int = 0
    collectives: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    unknown_loops: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Both, one after the other."""
        kinds = {**self.collectives, **other.collectives}
        none = (0, 0)
        both = {
            kind: (
                self.collectives.get(kind, none)[0] + other.collectives.get(kind, none)[0],
                self.collectives.get(kind, none)[1] + other.collectives.get(kind, none)[1],
            )
            for kind in kinds
        }
        return Counts(
            self.launches + other.launches,
            self.flops + other.flops,
            self.bytes + other.bytes,
            both,
            self.unknown_loops + other.unknown_loops,
        )

    def __mul__(self, turns: int) -> Counts:
        """So many times."""
        return Counts(
            self.launches * turns,
            collections.Counter({kind: n * turns for kind, n in self.flops.items()}),
            self.bytes * turns,
            {kind: (n * turns, size * turns) for kind, (n, size) in self.collectives.items()},
            self.unknown_loops * turns,
        )


def count(text: str) -> Counts:
    """The costs of a scheduled program, as `compiled.as_text()` gives it."""
    return _Program(text).counts(_Program.ENTRY)


class Instruction(NamedTuple):
    """A line of a computation."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    inside: str  # the text between the parentheses
    attributes: str
    root: bool

    def called(self, what: str) -> str:
        """The computation that an attribute names."""
        found = re.search(rf"\b{what}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""


class _Program:
    """Computations by name, each of them its instructions by name."""

    ENTRY = "ENTRY"

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        lines: dict[str, Instruction] = {}
        for line in text.splitlines():
            if opened := COMPUTATION.match(line):
                lines = self.computations[self.ENTRY if opened[1] else opened[2]] = {}
            elif found := INSTRUCTION.match(line):
                lines[found[2]] = _instruction(found[2], found[3], bool(found[1]))
        self.counts = functools.cache(self._counts)

    def _counts(self, computation: str) -> Counts:
        lines = self.computations[computation]
        return sum((self._cost(lines, line) for line in lines.values()), Counts())

    def _cost(self, lines: dict[str, Instruction], line: Instruction) -> Counts:
        if line.opcode in FREE or line.opcode.endswith("-done"):
            return Counts()
        if line.opcode == "while":
            return self._loop(lines, line)
        if line.opcode in ("call", "async-start"):
            return self.counts(line.called("to_apply") or line.called("calls"))
        if line.opcode == "conditional":
            named = re.search(r"branch_computations=\{(.*?)\}", line.attributes)
            names = (
                named[1]
                if named
                else line.called("true_computation") + " %" + line.called("false_computation")
            )
            branches = [self.counts(name) for name in re.findall(r"[\w.\-]+", names)]
            return max(branches, key=lambda branch: branch.launches)
        cost = Counts(1, _flops(lines, line), _traffic(lines, line), _collective(lines, line))
        if line.opcode == "fusion":
            inner = self.computations[line.called("calls")]
            cost = dataclasses.replace(cost, bytes=_fused_traffic(lines, line, inner))
            inside = self._inside(line.called("calls"))
            cost += Counts(flops=inside.flops, collectives=inside.collectives)
        return cost

    def _inside(self, computation: str) -> Counts:
        """Products and collectives inside of a fusion, which is one launch."""
        total = Counts()
        lines = self.computations[computation]
        for line in lines.values():
            total += Counts(flops=_flops(lines, line), collectives=_collective(lines, line))
            if inner := line.called("calls"):
                total += self._inside(inner)
        return total

    def _loop(self, lines: dict[str, Instruction], line: Instruction) -> Counts:
        body, condition = line.called("body"), line.called("condition")
        known = TURNS.search(line.attributes)
        turns = int(known[1]) if known else self._turns(lines, line, condition)
        if turns is None:
            return self.counts(body) + self.counts(condition) + Counts(unknown_loops=1)
        # A GPU that knows the turns does not ask the condition.
        return self.counts(body) * turns

    def _turns(
        self, lines: dict[str, Instruction], line: Instruction, condition: str
    ) -> int | None:
        """Turns of a loop that counts by ones from a constant up to another."""
        inner = self.computations[condition]
        (root,) = (line for line in inner.values() if line.root)
        if root.opcode != "compare" or "direction=LT" not in root.attributes:
            return None
        counter, bound = (_source(inner, name) for name in root.operands)
        begin = _source(lines, line.operands[0])
        if counter.opcode != "get-tuple-element" or begin.opcode != "tuple":
            return None
        ends = []
        for end in (_source(lines, begin.operands[_index(counter)]), bound):
            if end.opcode == "get-tuple-element":
                end = _source(lines, begin.operands[_index(end)])
            if end.opcode != "constant" or not re.fullmatch(r"-?\d+", end.inside):
                return None
            ends.append(int(end.inside))
        return max(0, ends[1] - ends[0])


def _instruction(name: str, text: str, root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, rest = text[:end], text[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name, kind, rest[:opening], operands, inside, rest[closing + 1 :], root)


def _closing(text: str, opening: int) -> int:
    """The place of the parenthesis that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    raise ValueError(f"a parenthesis is not closed in {text[:80]!r}")


def _source(lines: dict[str, Instruction], name: str) -> Instruction:
    """The instruction behind copies."""
    line = lines[name]
    while line.opcode in ("copy", "bitcast") and line.operands:
        line = lines[line.operands[0]]
    return line


def _index(line: Instruction) -> int:
    return int(re.search(r"index=(\d+)", line.attributes)[1])  # pyright: ignore


# Sizes.


def _arrays(kind: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """(element type, shape, layout) of each array of a type."""
    for dtype, shape, layout in ARRAY.findall(kind):
        yield dtype, tuple(int(n) for n in shape.split(",") if n), layout


def _size(kind: str, *, anywhere: bool = False) -> int:
    """Bytes in the device's main memory: a TPU's vector memory is marked S(1), flags S(2)."""
    total = 0
    for dtype, shape, layout in _arrays(kind):
        if anywhere or "S(" not in layout:
            bits = 8 if dtype == "pred" else int((re.findall(r"\d+", dtype) or ["0"])[0])
            total += math.prod(shape) * bits // 8
    return total


def _shape(lines: dict[str, Instruction], name: str) -> tuple[int, ...]:
    return next(_arrays(lines[name].type))[1]


def _traffic(lines: dict[str, Instruction], line: Instruction) -> int:
    """Bytes that an instruction reads and writes, but for a fusion."""
    result = _size(line.type)
    if line.opcode in NO_READING or line.opcode == "copy-start":  # its type holds both sides
        return result
    if line.opcode in SLICES:
        return 2 * result
    if line.opcode in UPDATES:
        return 2 * _size(lines[line.operands[UPDATES[line.opcode]]].type) if result else 0
    read = sum(_size(lines[name].type) for name in set(line.operands))
    if line.opcode.endswith("-start"):
        return 2 * read
    if line.opcode == "custom-call" and '"__cu' in line.attributes:  # beside it a workspace
        result = _size(line.type.split("}")[0])
    return read + result


def _fused_traffic(
    lines: dict[str, Instruction], line: Instruction, inner: dict[str, Instruction]
) -> int:
    """Bytes of a fusion: of what is sliced the slices, of what is updated in place the update."""
    users = collections.defaultdict(list)
    for user in inner.values():
        for place, name in enumerate(user.operands):
            users[name].append((user, place))

    def read(name: str) -> float:
        total = 0.0
        for user, place in users[name]:
            if user.opcode == "bitcast":
                total += read(user.name)
            elif user.opcode in SLICES and place == 0:
                total += _size(user.type, anywhere=True)
            elif user.opcode not in UPDATES or place > 0:
                return math.inf
        return total

    total = 0
    parameters = {line.inside: line.name for line in inner.values() if line.opcode == "parameter"}
    for place, name in enumerate(line.operands):
        whole = _size(lines[name].type)
        if whole and name not in line.operands[:place]:
            total += int(min(whole, read(parameters[str(place)])))
    (root,) = (line for line in inner.values() if line.root)
    if root.opcode != "tuple":
        return total + _written(inner, root, line.type)
    kinds = (match[0] for match in ARRAY.finditer(line.type))
    outputs = (inner[name] for name in root.operands)
    total += sum(_written(inner, *both) for both in zip(outputs, kinds, strict=True))
    return total


def _written(inner: dict[str, Instruction], output: Instruction, kind: str) -> int:
    """Bytes of an output of a fusion, whose type says where it lies."""
    output, size = _source(inner, output.name), _size(kind)
    if size and output.opcode in UPDATES:
        part = inner[output.operands[UPDATES[output.opcode]]]
        return _size(part.type, anywhere=True)
    return size


def _collective(lines: dict[str, Instruction], line: Instruction) -> dict[str, tuple[int, int]]:
    kind = line.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return {}
    size = sum(_size(lines[name].type, anywhere=True) for name in line.operands)
    if kind == "all-gather":
        whole = _size(line.type, anywhere=True)
        size = whole - size if line.opcode.endswith("-start") else whole
    return {kind: (1, size)}


# FLOPs: twice the multiplications of products and convolutions, as XLA counts them.


def _flops(lines: dict[str, Instruction], line: Instruction) -> collections.Counter[str]:
    if line.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.attributes)
        multiplications = _product(lines, line, contracted[1] if contracted else "")
    elif line.opcode == "convolution":
        shapes = *(_shape(lines, name) for name in line.operands[:2]), next(_arrays(line.type))[1]
        multiplications = _convolution(line.attributes, *shapes)
    elif line.opcode == "custom-call" and "__cublas$" in line.attributes:
        contracted = re.search(r'lhs_contracting_dimensions":\[([\d",]*)\]', line.attributes)
        numbers = contracted[1].replace('"', "") if contracted else ""
        multiplications = _product(lines, line, numbers)
    elif line.opcode == "custom-call" and "__cudnn$conv" in line.attributes:
        first, second = (_shape(lines, name) for name in line.operands[:2])
        result = next(_arrays(line.type))[1]
        if "convBackwardInput" in line.attributes:  # of the output's gradient and the kernel
            shapes = result, second, first
        elif "convBackwardFilter" in line.attributes:  # of the input and the output's gradient
            shapes = first, result, second
        else:
            shapes = first, second, result
        multiplications = _convolution(line.attributes, *shapes)
    else:
        return collections.Counter()
    return collections.Counter({_precision(lines, line): 2 * multiplications})


def _precision(lines: dict[str, Instruction], line: Instruction) -> str:
    dtype = next(_arrays(lines[line.operands[0]].type))[0]
    algorithm = re.search(r"algorithm=dot_(\w+)", line.attributes)
    asked = re.search(r"operand_precision=\{(\w+)", line.attributes)
    if algorithm:
        return f"{dtype} {algorithm[1]}"
    return f"{dtype} {asked[1]}" if asked and asked[1] != "default" else dtype


def _product(lines: dict[str, Instruction], line: Instruction, contracted: str) -> int:
    shape = _shape(lines, line.operands[0])
    depth = math.prod(shape[int(axis)] for axis in contracted.split(",") if axis)
    return math.prod(next(_arrays(line.type))[1]) * depth


def _convolution(
    attributes: str,
    image: tuple[int, ...],
    kernel: tuple[int, ...],
    result: tuple[int, ...],
) -> int:
    """Multiplications of a convolution without those by padding and by the zeros of dilation."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    assert labels, attributes
    image_at, kernel_at, result_at = (
        dict(zip(names, shape, strict=True))
        for names, shape in zip(labels.groups(), (image, kernel, result), strict=True)
    )
    window = re.search(r"window=\{(.*?)\}", attributes)
    options = dict(item.split("=") for item in window[1].split()) if window else {}
    ones = "x".join("1" for _ in kernel_at)
    pads = options.get("pad", ones.replace("1", "0_0")).split("x")
    strides, spread, holes = (
        [int(n) for n in options.get(name, ones).split("x")]
        for name in ("stride", "lhs_dilate", "rhs_dilate")
    )
    total = result_at["b"] * result_at["f"] * kernel_at["i"]
    for axis in itertools.takewhile(kernel_at.__contains__, map(str, itertools.count())):
        k = int(axis)
        total *= _taps(
            image_at[axis], kernel_at[axis], result_at[axis], strides[k],
            int(pads[k].split("_")[0]), spread[k], holes[k],
        )  # fmt: skip
    return total


@functools.cache
def _taps(
    image: int, kernel: int, result: int, stride: int, pad: int, spread: int, holes: int
) -> int:
    """Pairs of an output and a kernel's entry along an axis that meet an entry of the image."""
    places = (o * stride - pad + k * holes for o in range(result) for k in range(kernel))
    return sum(0 <= p <= (image - 1) * spread and p % spread == 0 for p in places)
