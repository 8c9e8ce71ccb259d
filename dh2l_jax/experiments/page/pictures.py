"""The pictures of a page: small SVG drawings, which take the colours of the page, and PNG images.

No name of a class or a file is drawn: names are the page's own text.
"""

from __future__ import annotations

import base64
import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dh2l_jax.experiments.page.numbers import SureRow
from dh2l_jax.experiments.page.weights import Sphere
from dh2l_jax.regularizers.params.diversity import Figures

__all__ = ["calibration", "confusion", "curves", "diversity", "png", "sphere", "sure"]

# Okabe and Ito's colours, which colour-blind readers tell apart; page.css has lighter ones for dark
# pages.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
NUMBERED = 30  # points of a sphere that are not too many to have their numbers
INK = "#010203"  # what is drawn in it takes the colour of the page's text
# Matplotlib's SVG names clip paths by a hash with this salt, so pages of equal runs are equal.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dh2l",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.formatter.useoffset": False,
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#888888",
    "grid.alpha": 0.3,
    "axes.grid": True,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


@contextlib.contextmanager
def drawn(parts: list[str], width: float = 4.2, height: float = 2.6) -> Iterator[Any]:
    """Axes to draw on; the picture is appended as one <svg> element.

    Raises:
      ImportError: there is no matplotlib; the message says what to install.
    """
    try:
        # Figure, not pyplot, which keeps figures and looks for a window system.
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("no matplotlib: pip install 'dh2l_jax[report]'") from None

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        yield axes
        file = io.StringIO()
        none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=none)
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    for number, colour in enumerate(COLOURS):
        text = text.replace(colour, f"var(--c{number})")
    text = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", text, flags=re.DOTALL)
    # The page says by words what a picture shows.
    head = f'<svg aria-hidden="true" focusable="false" class="n{len(parts)}"'
    text = re.sub(
        r'^<svg(?P<rest>.*?) width="[\d.]+pt" height="[\d.]+pt"', rf"{head}\g<rest>", text
    )
    parts.append(re.sub(r"(\n\s*)+", "\n", text))


def curves(titles: Sequence[str], series: Sequence[Mapping[str, Any]]) -> list[str]:
    """A picture for each title: its lines by name, each a pair of epochs and values."""
    parts: list[str] = []
    for title, lines in zip(titles, series, strict=True):
        with drawn(parts) as axes:
            for name, (epochs, values) in lines.items():
                mark = "o" if len(epochs) < 3 else None
                axes.plot(epochs, values, label=name, linewidth=1.4, marker=mark, markersize=4)
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.locator_params(axis="x", integer=True)
            if len(lines) > 1:
                axes.legend(fontsize=8)
    return parts


def sure(rows: Sequence[SureRow]) -> list[str]:
    """Right answers over τ, and the depth of the answers over τ."""
    parts: list[str] = []
    thresholds = [row.threshold for row in rows]
    with drawn(parts) as axes:
        axes.plot(thresholds, [row.right for row in rows], label="right")
        if any(row.undecided for row in rows):
            axes.plot(thresholds, [row.undecided for row in rows], "-.", label="undecided")
        axes.plot(thresholds, [row.wrong for row in rows], "--", label="wrong")
        axes.plot(thresholds, [row.specificity for row in rows], ":", label="specificity")
        _shares(axes, "threshold τ", "share of the images")
        axes.legend(fontsize=8)
    with drawn(parts) as axes:
        shares = np.array([[*row.depths[::-1], row.root] for row in rows]).T
        L = len(rows[0].depths)
        names = [f"level {level}" for level in range(L, 0, -1)] + ["the root"]
        axes.stackplot(thresholds, shares, labels=names, alpha=0.75, colors=_spread(len(names)))
        _shares(axes, "threshold τ", "answered at")
        axes.figure.legend(fontsize=8, loc="outside upper right", ncols=min(len(names), 4))
    return parts


def calibration(bins: Sequence[tuple[int, float, float]]) -> list[str]:
    """Accuracy over certainty, a bar a bin."""
    parts: list[str] = []
    with drawn(parts) as axes:
        edges = np.linspace(0, 1, len(bins) + 1)
        heights = [share if n else 0.0 for n, _, share in bins]
        axes.bar(edges[:-1], heights, width=1 / len(bins), align="edge", alpha=0.75, edgecolor=INK)
        axes.plot([0, 1], [0, 1], "--", color=INK, linewidth=1)
        _shares(axes, "certainty", "accuracy")
    return parts


def diversity(rows: Mapping[str, Figures]) -> list[str]:
    """The angle to the nearest vector of each layer, beside that of random vectors."""
    parts: list[str] = []
    shown = [row for row in rows.values() if row.nearest is not None]
    if not shown:
        return []
    with drawn(parts, 6.4, 2.8) as axes:
        places = np.arange(1, len(shown) + 1)
        chance = np.array([row.chance.get("nearest", (np.nan, np.nan)) for row in shown])
        axes.errorbar(
            places, chance[:, 0], 2 * chance[:, 1], fmt="_", color=COLOURS[1], capsize=3,
            label="random vectors ± 2 deviations",
        )  # fmt: skip
        axes.plot(places, [row.nearest for row in shown], "o", markersize=4, label="the layer")
        axes.set_xlim(0.5, len(shown) + 0.5)
        axes.set_xlabel("layer, as numbered in the table")
        axes.set_ylabel("nearest, degrees")
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="x", integer=True)
        axes.legend(fontsize=8)
    return parts


def sphere(group: Sphere) -> str:
    """The members of a group as numbered points in the disc that the sphere projects to."""
    parts: list[str] = []
    with drawn(parts, 1.7, 1.7) as axes:
        turn = np.linspace(0, 2 * np.pi, 181)
        axes.plot(np.cos(turn), np.sin(turn), color=INK, linewidth=0.8)
        x, y = group.points.T
        rays = np.stack([0 * x, x, np.full_like(x, np.nan)], 1).ravel()
        axes.plot(
            rays, np.stack([0 * y, y, y], 1).ravel(), color=COLOURS[0], linewidth=0.8, alpha=0.7
        )
        axes.plot(x, y, "o", color=COLOURS[0], markersize=4)
        for number, point in enumerate(group.points if len(x) <= NUMBERED else (), 1):
            axes.annotate(str(number), point, (3, 3), textcoords="offset points", fontsize=8)
        axes.set_aspect("equal")
        axes.set_axis_off()
        axes.set_xlim(-1.15, 1.15)
        axes.set_ylim(-1.15, 1.15)
    return parts[0]


def confusion(counts: np.ndarray) -> str:
    """An image of one pixel a cell, darker for a larger share of its row; clear where it is 0."""
    share = np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    pixels = np.zeros((*counts.shape, 4), np.uint8)
    pixels[..., :3] = _rgb(COLOURS[1])
    np.einsum("iij->ij", pixels)[:, :3] = _rgb(COLOURS[0])
    pixels[..., 3] = np.where(counts > 0, 55 + 200 * share, 0).astype(np.uint8)
    return png(pixels)


def png(pixels: np.ndarray) -> str:
    """An image (h, w, c) of uint8 as a data address."""
    from matplotlib.image import imsave

    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    file = io.BytesIO()
    imsave(file, pixels, format="png", metadata={"Software": "dh2l"})
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _shares(axes: Any, x: str, y: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _spread(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
