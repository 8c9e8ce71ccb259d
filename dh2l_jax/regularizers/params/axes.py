"""Which axes of an array are vectors: texts as einops has them, such as "i h d -> (h d) i"."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp

__all__ = ["Axes", "leading", "parse"]

REST = "..."
Groups = tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Axes:
    """How an array is read as vectors: the last axis on the right is d, the one before it n.

    Attributes:
      text: as it was given.
      left: the array's axes; names in parentheses share one.
      right: those of the vectors.
      sizes: of names in parentheses on the left.
      rank: how many of the last axes are one thing: a matrix (n, d), or a kernel.
    """

    text: str
    left: Groups
    right: Groups
    sizes: tuple[tuple[str, int], ...] = ()
    rank: int = 2

    def fits(self, rank: int) -> bool:
        """Whether an array of so many axes can be read."""
        return rank >= len(self.left) - 1 if (REST,) in self.left else rank == len(self.left)

    def vectors(self, x: jax.Array) -> jax.Array:
        """(..., n, d).

        >>> parse("i h d -> (h d) i").vectors(jnp.ones((5, 4, 3))).shape
        (12, 5)
        """
        left, right = self._named(x.ndim)
        size = self._sizes(left, x.shape)
        order = [name for group in right for name in group]
        blocks = _neighbours([name for group in left for name in group], order)
        x = jnp.reshape(x, [math.prod(size[name] for name in block) for block in blocks])
        x = jnp.transpose(x, sorted(range(len(blocks)), key=lambda k: order.index(blocks[k][0])))
        return jnp.reshape(x, [math.prod(size[name] for name in group) for group in right])

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the vectors of an array of a shape."""
        left, right = self._named(len(shape))
        size = self._sizes(left, shape)
        return tuple(math.prod(size[name] for name in group) for group in right)

    def kernel(self) -> Axes | None:
        """How the array is read as kernels (..., kh, kw, i, o), if its axes have these names.

        >>> parse("o i kh kw -> o (i kh kw)").kernel().vectors(jnp.ones((5, 4, 3, 2))).shape
        (3, 2, 4, 5)
        """
        *batch, n, d = self.right
        if n != ("o",) or {*d} != {"kh", "kw", "i"}:
            return None
        kernel = (("kh",), ("kw",), ("i",), ("o",))
        return dataclasses.replace(self, right=(*batch, *kernel), rank=4)

    def _named(self, rank: int) -> tuple[Groups, Groups]:
        """Both sides for an array of so many axes, with names for those of "..."."""
        rest = tuple((f"{REST}{k}",) for k in range(rank - len(self.left) + 1))
        left, right = (
            tuple(g for group in side for g in (rest if group == (REST,) else (group,)))
            for side in (self.left, self.right)
        )
        return left, right

    def _sizes(self, left: Groups, shape: tuple[int, ...]) -> dict[str, int]:
        sizes = dict(self.sizes)
        for group, length in zip(left, shape, strict=True):
            known = math.prod(sizes.get(name, 1) for name in group)
            unknown = [name for name in group if name not in sizes]
            if length % known or not (unknown or length == known):
                named = ", ".join(f"{k}={v}" for k, v in self.sizes)
                raise ValueError(f"axes {self.text!r}: {length} is no multiple of {named}")
            sizes |= dict.fromkeys(unknown, length // known)
        return sizes


def _neighbours(left: list[str], order: list[str]) -> list[tuple[str, ...]]:
    """The axes in their order, those together that stay together."""
    blocks: list[tuple[str, ...]] = []
    for name in left:
        if blocks and order.index(name) == order.index(blocks[-1][-1]) + 1:
            blocks[-1] = (*blocks[-1], name)
        else:
            blocks.append((name,))
    return blocks


@functools.cache
def parse(text: str) -> Axes:
    """Axes from a text.

    Args:
      text: "axes of the array -> batch axes, n, d". Names in parentheses are one axis, on the left
        with their sizes behind a comma, as in "k i (g o) -> g o (k i), g=4"; "..." stands for any
        number of axes.

    Raises:
      ValueError: the text cannot be read so.

    >>> parse("l i o -> l o i").shape((3, 5, 7))
    (3, 7, 5)
    """
    pattern, *given = (part.strip() for part in text.split(","))
    sides = pattern.split("->")
    if len(sides) != 2:
        raise _wrong(text, "expected one '->'")
    sizes = [re.fullmatch(r"(\w+)\s*=\s*(\d+)", size) for size in given]
    if None in sizes:
        raise _wrong(text, "expected sizes as g=4 behind the commas")
    left, right = (_groups(side, text) for side in sides)
    axes = Axes(text, left, right, tuple((m[1], int(m[2])) for m in sizes if m))
    _check(axes)
    return axes


def _groups(side: str, text: str) -> Groups:
    tokens = re.findall(r"\([^()]*\)|\.\.\.|\w+|\S", side)
    groups = tuple(tuple(token.strip("()").split()) for token in tokens)
    for token, group in zip(tokens, groups, strict=True):
        for name in group or ("()",):
            if not name.isidentifier() and token != REST:
                raise _wrong(text, f"{name!r} is no name of an axis")
    return groups


def _check(axes: Axes) -> None:
    left, right = ([name for g in side for name in g] for side in (axes.left, axes.right))
    for name in left + right:
        if left.count(name) != 1 or right.count(name) != 1:
            raise _wrong(axes.text, f"{name!r} must stand once on each side")
    if len(axes.right) < 2 or (REST,) in axes.right[-2:]:
        raise _wrong(axes.text, "the right side must end in the vectors' number and length, n d")
    sizes = dict(axes.sizes)
    for name in sizes.keys() - set(left):
        raise _wrong(axes.text, f"{name!r} is no axis")
    for group in axes.left:
        if len([name for name in group if name not in sizes]) > 1:
            raise _wrong(axes.text, f"the sizes in ({' '.join(group)}) are missing: all but one")


def _wrong(text: str, why: str) -> ValueError:
    return ValueError(f"axes {text!r}: {why}, as in 'i h d -> (h d) i'")


def leading(text: str, extra: int) -> str:
    """A text with further axes before those that it names, such as those of `vmap`.

    >>> leading("i o -> o i", 1), leading("i o -> o i", 0)
    ('... i o -> ... o i', 'i o -> o i')
    """
    left, right = text.split(" -> ")
    return f"... {left} -> ... {right}" if extra else text
