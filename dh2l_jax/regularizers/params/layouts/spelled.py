"""Axes of the layers that every framework has, spelled out."""

from __future__ import annotations

__all__ = ["contraction", "convolution", "linear"]

SPATIAL = {0: "", 1: "k", 2: "kh kw", 3: "kd kh kw"}


def linear(batch: int, inputs: int, outputs: int) -> str:
    """Axes of a general linear layer, which come in this order.

    >>> linear(0, 1, 1), linear(0, 1, 2), linear(0, 2, 1), linear(1, 1, 1)
    ('i o -> o i', 'i o1 o2 -> (o1 o2) i', 'i1 i2 o -> o (i1 i2)', 'b i o -> b o i')
    """
    b, i, o = (
        _names(letter, count) for letter, count in zip("bio", (batch, inputs, outputs), strict=True)
    )
    return f"{_side(*b, *i, *o)} -> {_side(*b, _group(o), _group(i))}"


def convolution(rank: int, order: str, groups: int = 1) -> str:
    """Axes of a convolution: of so many spatial axes, with "i o", "o i" behind or "o i k" before.

    Filters of one group are compared with each other: those of others see other inputs.

    >>> convolution(2, "i o"), convolution(1, "i o", 4)
    ('kh kw i o -> o (kh kw i)', 'k i (g o) -> g o (k i), g=4')
    >>> convolution(2, "o i k")
    'o i kh kw -> o (i kh kw)'
    """
    spatial = SPATIAL.get(rank) or " ".join(f"k{k}" for k in range(1, rank + 1))
    first, behind = order.endswith("k"), order.removesuffix(" k")
    left = f"{behind} {spatial}" if first else f"{spatial} {behind}"
    filters = f"i {spatial}" if first else f"{spatial} i"
    if groups == 1:
        return f"{left} -> o ({filters})"
    return f"{left.replace('o', '(g o)')} -> g o ({filters}), g={groups}"


def contraction(equation: str, rank: int) -> str | None:
    """Axes of the second operand of an einsum: what is summed is d, what stays is n.

    Letters of both operands that stay are a batch. None if nothing stays.

    >>> contraction("btd,dhk->bthk", 3), contraction("...gi,gio->...go", 3)
    ('d h k -> (h k) d', 'g i o -> g o i')
    """
    operands, _, result = equation.replace(" ", "").partition("->")
    x, _, kernel = operands.partition(",")
    if "." in kernel or len(kernel) != rank or len({*kernel}) != rank:
        return None
    batch = [a for a in kernel if a in x and a in result]
    outputs = [a for a in kernel if a not in x and a in result]
    inputs = [a for a in kernel if a not in result]
    if not outputs or not inputs:
        return None
    return f"{_side(*kernel)} -> {_side(*batch, _group(outputs), _group(inputs))}"


def _names(letter: str, count: int) -> list[str]:
    return [letter] if count == 1 else [f"{letter}{k}" for k in range(1, count + 1)]


def _group(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"({' '.join(names)})"


def _side(*axes: str) -> str:
    return " ".join(axes)
