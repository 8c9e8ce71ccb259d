"""What a benchmark reports: one figure a row, with its target and the floor of its time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table
from timing import Times, interleaved

__all__ = ["Ceilings", "Row", "ceilings", "compared", "show"]

MATRIX = 2048  # rows of the matrices whose product is the ceiling of arithmetic
VECTOR = 2**26  # bytes that are written for the ceiling of memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One figure.

    Attributes:
      what: the row of the table.
      case: metric and size.
      figure: what was measured, and in which unit.
      value: the figure, a median where it is a time.
      low: least of the rounds.
      high: greatest of the rounds.
      target: what it must not exceed, or must reach if `at_least`.
      at_least: the target is a lower bound.
      ms: our own time in milliseconds.
      floor_ms: what arithmetic and memory take at the speeds measured in this run.
    """

    what: str
    case: str
    figure: str
    value: float
    low: float | None = None
    high: float | None = None
    target: float | None = None
    at_least: bool = False
    ms: float | None = None
    floor_ms: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """Speeds of this machine in this run.

    Attributes:
      flops: of a float32 matrix product, a second.
      bytes: read and written in place, a second.
    """

    flops: float
    bytes: float

    def floor_ms(self, flops: float, traffic: float = 0.0) -> float:
        """Milliseconds that arithmetic and memory traffic take at least, one after the other."""
        return 1e3 * (flops / self.flops + traffic / self.bytes)


def ceilings(rounds: int = 7) -> Ceilings:
    """Measures the matrix product and the traffic of an update in place."""
    square = jnp.ones((MATRIX, MATRIX), jnp.float32)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    state = {"x": jnp.zeros(VECTOR // 4, jnp.float32)}

    def update() -> jax.Array:
        state["x"] = add(state["x"])
        return state["x"]

    arms = {"product": functools.partial(jax.jit(jnp.dot), square, square), "update": update}
    times = interleaved(arms, rounds)
    return Ceilings(
        2 * MATRIX**3 / min(times.seconds["product"]), 2 * VECTOR / min(times.seconds["update"])
    )


def compared(
    times: Times,
    arm: str,
    other: str,
    *,
    what: str,
    case: str,
    figure: str,
    times_other: float = 1.0,
    target: float | None = None,
    floor_ms: float | None = None,
) -> Row:
    """The row of the ratio of an arm's time to `times_other` times that of another."""
    value, low, high = (ratio / times_other for ratio in times.ratio(arm, other))
    return Row(
        what=what,
        case=case,
        figure=figure,
        value=value,
        low=low,
        high=high,
        target=target,
        ms=1e3 * times.median(arm),
        floor_ms=floor_ms,
    )


def show(rows: Sequence[Row], console: Console) -> None:
    """Prints the rows as a table."""
    table = Table()
    for name in ("what", "case", "figure"):
        table.add_column(name)
    for name in ("value", "spread", "target", "", "ms", "floor ms", "gap"):
        table.add_column(name, justify="right")
    for row in rows:
        spread = f"{row.low:.3g}-{row.high:.3g}" if row.low is not None else ""
        sign = "≥" if row.at_least else "≤"
        gap = f"{row.ms / row.floor_ms:.2f}" if row.ms and row.floor_ms else ""
        table.add_row(
            row.what,
            row.case,
            row.figure,
            f"{row.value:.3g}",
            spread,
            "" if row.target is None else f"{sign} {row.target:g}",
            {None: "", True: "met", False: "missed"}[row.met],
            "" if row.ms is None else f"{row.ms:.4g}",
            "" if row.floor_ms is None else f"{row.floor_ms:.3g}",
            gap,
        )
    console.print(table)
