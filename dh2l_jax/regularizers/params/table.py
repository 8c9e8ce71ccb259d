"""A plan as a table, in text and in HTML."""

from __future__ import annotations

import html
from typing import Any

from dh2l_jax.metrics.profile import half_space_metric, similarities_used
from dh2l_jax.metrics.sums.plan import choose
from dh2l_jax.regularizers.table import mean_of

__all__ = ["as_html", "as_text"]

HEAD = ("path", "shape", "read as", "known from", "vectors", "regulariser", "weight", "sum", "cost")


def as_text(plan: Any) -> str:
    """Columns under a head, then what was left out and why."""
    rows = [HEAD, *map(_row, plan.layers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, *(f"left out: {path}: {why}" for path, why in plan.not_taken)])


def as_html(plan: Any) -> str:
    """The same for a notebook."""
    rows = "".join(_html_row("td", _row(layer)) for layer in plan.layers)
    left_out = "".join(_html_row("td", pair) for pair in plan.not_taken)
    more = f"<details><summary>left out</summary><table>{left_out}</table></details>"
    return f"<table>{_html_row('th', HEAD)}{rows}</table>{more if left_out else ''}"


def _html_row(tag: str, cells: Any) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in cells)}</tr>"


def _row(layer: Any) -> tuple[str, ...]:
    *batch, n, d = layer.axes.shape(layer.shape)
    matrices = 1
    for size in batch:
        matrices *= size
    vectors = f"{n:,} of {d:,}"
    way, products = _way(layer.rule.regularizer, n, d)
    return (
        layer.path,
        str(layer.shape),
        layer.axes.text,
        layer.source,
        f"{matrices:,} × {vectors}" if batch else vectors,
        layer.rule.name,
        f"{layer.rule.weight:g}",
        way,
        _short(matrices * products) if products else "",
    )


def _short(products: float) -> str:
    for unit in (" ", " k", " M"):
        if products < 1000:
            return f"{products:.3g}{unit}".rstrip()
        products /= 1000
    return f"{products:.3g} G"


def _way(regularizer: Any, n: int, d: int) -> tuple[str, int]:
    """How the pairs of n rows are summed, and with how many products of numbers."""
    pairs = mean_of(regularizer)
    if not pairs:
        return getattr(getattr(regularizer, "row", None), "cost", "its own"), 0
    if n < 2:
        return "no pair", 0
    metric, half_space = pairs
    way = choose(half_space_metric(metric) if half_space else metric, n, width=d)
    name = type(way.way).__name__.lower()
    products = {"closed": n * d, "squares": n * d * d}
    return name, products.get(name, n * n * d * sum(similarities_used(way.rest.energy)))
