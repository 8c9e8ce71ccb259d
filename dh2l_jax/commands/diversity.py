"""How diverse the weight vectors of a file or a run are, beside random vectors, without training.

  dh2l diversity resnet50-19c8e357.pth
  dh2l diversity runs/mine --json
  dh2l diversity model.safetensors --layout torch --plot angles.png
  dh2l diversity weights.npz --rule 'attn/.*kernel => i h d -> (h d) i'

Angles are in degrees, in brackets how many standard deviations a figure lies from that of random
vectors. A layer that is far less diverse than chance is marked with an arrow.
"""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import dh2l_jax as dh2l
from dh2l_jax.commands import BAD, Exit, Parser, fail
from dh2l_jax.experiments.page.weights import HEAD_RULE, read_arrays
from dh2l_jax.models.weights import read_weights
from dh2l_jax.regularizers import Plan
from dh2l_jax.regularizers.params.diversity import Figures, random_density
from dh2l_jax.regularizers.params.layouts.files import LAYOUTS, file_rules, is_torchs
from dh2l_jax.training.run.folder import is_run

PROGRAM = "dh2l diversity"
FIGURES = {"mean": "mean", "smallest": "smallest", "nearest": "nearest", "signs": "signs"}
HEAD = ("layer", "n", "d", *FIGURES, "rank", "duplicates", "dead", "")


def main(arguments: list[str] | None = None) -> int:
    """Prints the table, or JSON, and draws the plot; the exit code."""
    try:
        options = parse_arguments(arguments)
        arrays, layout, told = _read(options)
        plan = _plan(arrays, layout, told)
        rows = dh2l.diversity(plan, arrays)
    except BAD as error:
        return fail(PROGRAM, error)
    print(as_json(rows, plan) if options.json else as_text(rows, plan))
    try:
        if options.plot:
            draw(rows, options.plot)
    except ImportError as error:
        return fail(PROGRAM, error)
    except (OSError, ValueError) as error:
        return fail(PROGRAM, f"cannot write {options.plot}: {error}", Exit.CANNOT_WRITE)
    return Exit.FINISHED


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, taken apart; a `ValueError` says what is wrong with it."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument(
        "source",
        metavar="FILE|RUN",
        help=".safetensors, .pth, .npz, hf://OWNER/NAME, or the folder of a run",
    )
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="whose axes: torch (outputs first), flax or haiku (outputs last)",
    )
    parser.add_argument(
        "--rule",
        action="append",
        default=[],
        metavar="'PATTERN => AXES'",
        help="axes of the arrays whose name has the pattern, such as 'query => i h d -> (h d) i'; "
        "may be given several times, the first that is found counts",
    )
    parser.add_argument("--json", action="store_true", help="prints JSON, with the histograms")
    parser.add_argument(
        "--plot", metavar="FILE", type=Path, help="draws the angles of each layer (.png, .svg)"
    )
    return parser.parse_args(arguments)


def _read(options: argparse.Namespace) -> tuple[dict[str, Any], str | None, dict[str, str]]:
    """The arrays by name, their layout where it is known, and the axes that are told."""
    told, source, layout = dict(map(_rule, options.rule)), options.source, options.layout
    path = Path(source).expanduser()
    if path.is_dir():
        if not is_run(path):
            raise ValueError(f"{path} holds no run: expected a file of weights, or a run's folder")
        arrays = read_arrays(path)
        if any(re.search(HEAD_RULE, name) for name in arrays) and not layout:
            told |= {HEAD_RULE: "n d -> n d"}
        return arrays, layout, told
    if not source.startswith("hf:") and not path.exists():
        raise ValueError(f"no file of weights and no folder of a run {source!r}")
    arrays = _read_npz(path) if path.suffix == ".npz" else read_weights(source)
    named = path.suffix in (".safetensors", ".npz") or source.startswith("hf:")
    if layout is None and (not named or is_torchs(arrays)):
        layout = "torch"  # every other file is one of torch
    return arrays, layout, told


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path}: no .npz file of numbers, or damaged: {error}") from None


def _rule(text: str) -> tuple[str, str]:
    pattern, arrow, axes = (part.strip() for part in text.partition("=>"))
    if not (pattern and arrow and axes):
        raise ValueError(f"--rule: expected 'PATTERN => AXES', found {text!r}")
    return pattern, axes


def _plan(arrays: Mapping[str, Any], layout: str | None, told: Mapping[str, str]) -> Plan:
    rules = file_rules(arrays, layout, told)
    if not rules:
        raise ValueError(
            f"no array is a weight in the layout {layout!r}, found {', '.join(list(arrays)[:5])}: "
            "add --rule 'PATTERN => AXES', or another --layout"
        )
    try:
        return dh2l.plan(dict(arrays), rules)
    except ValueError as error:
        # The plan's own advice is for Python; here the rule to add is an option.
        what, _, advice = str(error).partition(": give the model itself")
        rule = re.search(r'r"(?P<pattern>.+)": \(".*?", .*?, "(?P<axes>.+)"\)$', advice)
        if not rule:
            raise
        name = rule["pattern"].replace("\\", "") if "'" in rule["pattern"] else rule["pattern"]
        raise ValueError(
            f"{what}: add --layout {'|'.join(LAYOUTS)}, or --rule '{name} => {rule['axes']}'"
        ) from None


# What is printed.


def as_json(rows: Mapping[str, Figures], plan: Plan) -> str:
    """{"layers": {path: figures}, "left_out": {path: reason}}."""
    layers = {
        path: row._asdict() | {"less_diverse": row.less_diverse} for path, row in rows.items()
    }
    return json.dumps({"layers": layers, "left_out": plan.left_out}, indent=1, allow_nan=False)


def as_text(rows: Mapping[str, Figures], plan: Plan) -> str:
    """A line a layer under a head, then how many are marked, and what was left out."""
    cells = [HEAD, *(_cells(path, row) for path, row in rows.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in cells
    ]
    marked = sum(row.less_diverse for row in rows.values())
    lines += ["", f"{marked} of {len(rows)} layers far less diverse than chance"]
    if plan.left_out:
        reasons = list(plan.left_out.values())
        counts = (f"{reasons.count(why)} {why}" for why in dict.fromkeys(reasons))
        lines.append(f"left out: {'; '.join(counts)}")
    return "\n".join(lines)


def _cells(path: str, row: Figures) -> tuple[str, ...]:
    several = f"{row.matrices} × " if row.matrices > 1 else ""
    figures = [_figure(row, name, 3 if name == "signs" else 2) for name in FIGURES]
    counts = f"{row.duplicates:,}", f"{row.dead:,}"
    mark = "← less diverse" if row.less_diverse else ""
    n, d = f"{several}{row.n:,}", f"{row.d:,}"
    return path, n, d, *figures, _figure(row, "rank", 1), *counts, mark


def _figure(row: Figures, name: str, digits: int) -> str:
    value, z = getattr(row, name), row.z.get(name)
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if z is None else f"{value:.{digits}f} ({z:+.1f})"


# The plot.


def draw(rows: Mapping[str, Figures], path: Path) -> None:
    """A panel a layer: its angles as a histogram, those of random vectors as a line.

    Raises:
      ImportError: there is no matplotlib; the message says what to install.
      OSError: the file cannot be written.
      ValueError: matplotlib knows no such kind of file.
    """
    try:
        # Figure, not pyplot, which keeps figures and looks for a window system.
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("no matplotlib: pip install 'dh2l_jax[tables]'") from None

    shown = {name: row for name, row in rows.items() if row.mean is not None}
    columns = min(6, max(1, len(shown)))
    lines = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(2.6 * columns + 0.6, 1.7 * lines + 0.9), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (name, row) in zip(panels, shown.items(), strict=False):
        _panel(axes, name, row)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    figure.supxlabel("angle of two vectors, degrees", fontsize=9)
    figure.supylabel("density", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    figure.savefig(path, dpi=150)


def _panel(axes: Any, name: str, row: Figures) -> None:
    edges, counts = np.arange(181), np.asarray(row.histogram)
    axes.stairs(counts / counts.sum(), edges, fill=True, color="#0072b2", label="the layer")
    if row.d > 1:
        degrees = np.arange(0.125, 180, 0.25)
        density = random_density(row.d, degrees)
        axes.plot(degrees, density, color="#d55e00", linewidth=1, label="random vectors")
    colour = "#d55e00" if row.less_diverse else "black"
    axes.set_title(f"{name}\n{row.n:,} × {row.d:,}", fontsize=7, color=colour)
    axes.set_xlim(0, 180)
    axes.set_xticks([0, 90, 180])
    axes.set_yticks([])
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right", "left"]].set_visible(False)
