"""The tables: the paper's six, cell by cell, the same comparison on Fashion-MNIST, and the field.

Where a table has E+H it gains the control that the paper lacks, the factored head with λ_l = 0.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from typing import Any

from dh2l_jax.checks import unknown_name
from dh2l_jax.data.facts import FACTS
from dh2l_jax.experiments.plan.methods import METHODS, setting_of
from dh2l_jax.experiments.plan.settings import Lists, Setting
from dh2l_jax.training.config.recipes import VARIANTS

__all__ = [
    "EMBEDDED",
    "FACTORED",
    "FASHION",
    "FIELD",
    "TABLES",
    "Cell",
    "Table",
    "comparison",
    "count_runs",
    "table",
]

PAPER = tuple(f"table{number}" for number in range(1, 7))
FASHION, FIELD = "table-fashion", "table-field"
EMBEDDED = (FASHION, FIELD)  # on the embedded images, with any network
TABLES = (*PAPER, *EMBEDDED)
FACTORED = "factored (λ_l = 0)"
COLUMN = "test"  # the one column of a comparison
# One metric of each kind: §4.2, footnote 6 (MHE), Eqs. (7), (8), (9) and (10).
FASHION_METRICS = ("cosine", "n_euclidean2", "d_h_bin", "d_am", "d_cos_hm", "d_am_cos")
_PLAIN_ROWS = {
    "baseline": "baseline",
    "baseline (no l2)": "baseline",
    "baseline_l2": "l2",
    "(l2, l2)": "l2",
    "l2": "l2",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
      row: label of the row, as in paper_results.json.
      column: label of the column.
      setting: what is trained.
      paper: the paper's figure, test top-1 in %; None where it has none.
    """

    row: str
    column: str
    setting: Setting
    paper: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as a plan.

    Attributes:
      name: of the command.
      data: key of `FACTS`.
      cells: in the order of the rows.
      note: what a reader has to know about the cells; may be empty.
      reference: what all else is compared with; None for the l2 of each network.
    """

    name: str
    data: str
    cells: tuple[Cell, ...]
    note: str = ""
    reference: Setting | None = None

    @property
    def title(self) -> str:
        """Number, data set and networks."""
        number = self.name.removeprefix("table")
        prefix = f"Table {number}: " if self.name in PAPER else ""
        data = FACTS[self.data].title if self.data in FACTS else self.data
        return f"{prefix}{data}, {', '.join(self.models)}"

    @property
    def one_column(self) -> bool:
        """Whether it compares methods, a row each, and nothing else."""
        return self.columns == (COLUMN,)

    @property
    def against(self) -> str:
        """What the reference is called."""
        named = (cell.row for cell in self.cells if cell.setting == self.reference)
        return next(named, "l2")

    def reference_of(self, setting: Setting) -> Setting:
        """What a setting is compared with; itself if it is that."""
        return self.reference or Setting(setting.data, setting.model, "l2")

    @property
    def has_paper(self) -> bool:
        """Whether the paper has figures for it."""
        return any(cell.paper is not None for cell in self.cells)

    @property
    def models(self) -> tuple[str, ...]:
        """Networks in order."""
        return tuple(dict.fromkeys(cell.setting.model for cell in self.cells))

    @property
    def rows(self) -> tuple[str, ...]:
        """Labels in order."""
        return tuple(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def columns(self) -> tuple[str, ...]:
        """Labels, network by network, the control beside what it controls."""
        # The last row decides what a column is: a metric's, which has every variant.
        settings = {cell.column: cell.setting for cell in self.cells}
        order = {
            column: (self.models.index(setting.model), VARIANTS.index(setting.variant))
            for column, setting in settings.items()
        }
        return tuple(sorted(order, key=lambda column: order[column]))

    @property
    def settings(self) -> tuple[Setting, ...]:
        """What has to be trained, each once: the baselines first, which all others need."""
        unique = dict.fromkeys(cell.setting for cell in self.cells)
        return tuple(sorted(unique, key=lambda setting: setting.variant not in ("baseline", "l2")))

    def only(self, rows: Iterable[str]) -> Table:
        """The table with the named rows and the baselines.

        Raises:
          ValueError: there is no such row.
        """
        rows = tuple(rows)
        for row in rows:
            if row not in self.rows:
                raise ValueError(unknown_name(f"row of {self.name}", row, self.rows))
        kept = {*rows, *_PLAIN_ROWS}
        cells = tuple(cell for cell in self.cells if cell.row in kept)
        return dataclasses.replace(self, cells=cells)


def table(name: str, *, embedded: bool = True, model: str = "resnet20") -> Table:
    """The plan of a table.

    Args:
      name: one of `TABLES`.
      embedded: of "table-fashion" and "table-field": the images inside the package, or all of
        Fashion-MNIST.
      model: network of these two.

    Raises:
      ValueError: there is no such table.

    >>> plan = table("table3")
    >>> plan.title, plan.columns, len(plan.settings)
    ('Table 3: CIFAR-100, resnet20', ('factored (λ_l = 0)', 'E+H'), 19)
    """
    if name in EMBEDDED:
        data = "fashion_mnist_mini" if embedded else "fashion_mnist"
        if name == FASHION:
            return Table(name, data, tuple(_fashion_cells(data, model)))
        return comparison(name, data, model, tuple(METHODS))
    if name not in PAPER:
        raise ValueError(unknown_name("table", name, TABLES))
    values = _paper()[name]
    note = _TABLE4_NOTE.format(*values["unlabelled_rows"]) if name == "table4" else ""
    return Table(name, values["dataset"], tuple(_paper_cells(values)), note)


def comparison(
    name: str, data: str, model: str, methods: Sequence[str], search: Lists = ()
) -> Table:
    """Methods side by side, see `setting_of`; l2 is the reference or, without it, the first one.

    Raises:
      ValueError: there is no such method, there is one twice, or no two of them.

    >>> comparison("mine", "cifar100", "resnet20", ["hxe", "l2"]).against
    'l2'
    """
    names = [method.partition(":")[0] for method in methods]
    if len(set(names)) < max(2, len(names)):
        raise ValueError(f"expected two different methods or more, found {' '.join(names)}")
    cells = [
        Cell(row, COLUMN, setting_of(data, model, method, search))
        for row, method in zip(names, methods, strict=True)
    ]
    reference = cells[names.index("l2") if "l2" in names else 0].setting
    return Table(name, data, tuple(cells), reference=reference)


_TABLE4_NOTE = (
    "Rows are (metric of the convolutions, metric of the head). (d_gm, l2) is read as the factored "
    "head with λ_l = 0, so it is the control of the rows below it. The paper prints three more "
    "rows whose labels are lost: {} %, {} % and {} %."
)


def count_runs(settings: Iterable[Setting], seeds: int) -> int:
    """Runs of a plan: all candidates with the first seed, the chosen one with each other seed.

    >>> count_runs(table("table-fashion").settings, seeds=3)
    90
    """
    return sum(len(setting.candidates) + seeds - 1 for setting in settings)


@functools.cache
def _paper() -> dict[str, Any]:
    text = (
        resources.files("dh2l_jax.experiments")
        .joinpath("plan", "paper_results.json")
        .read_text("utf-8")
    )
    return json.loads(text)["tables"]


def _paper_cells(values: dict[str, Any]) -> Iterator[Cell]:
    """Cells of one of the paper's tables, with the control beside each E+H."""
    for row, figures in values["rows"].items():
        for column, paper in zip(values["columns"], figures, strict=True):
            if paper is None:
                continue
            *model, label = column.split()
            network = model[0] if model else values["model"]
            setting = _setting(values["dataset"], network, label, row)
            yield Cell(row, column, setting, paper)
            if setting.variant == "E+H" and not row.startswith("("):
                yield Cell(row, " ".join([*model, FACTORED]), _control(setting))


def _setting(data: str, model: str, label: str, row: str) -> Setting:
    """What the row and the variant's label stand for. In Table 1 "E" is without l2, "E+l2" with."""
    if row in _PLAIN_ROWS:
        return Setting(data, model, "l2" if label == "E+l2" else _PLAIN_ROWS[row])
    conv, fc = row.strip("()").split(", ") if row.startswith("(") else (row, row)
    variant = label.removesuffix("+l2")
    decay = data != "cifar10" or label == "E+l2"
    setting = Setting(data, model, variant, conv, fc, decay)
    return _control(setting) if fc == "l2" else setting


def _control(setting: Setting) -> Setting:
    """The same without R: the head's metric has no part in it, so it is not told apart by it."""
    return dataclasses.replace(setting, variant="factored", fc_metric="")


def _fashion_cells(data: str, model: str) -> Iterator[Cell]:
    for row in ("baseline", "l2"):
        yield Cell(row, "E", Setting(data, model, row))
    for metric in FASHION_METRICS:
        whole = Setting(data, model, "E+H", metric, metric)
        yield Cell(metric, "E", dataclasses.replace(whole, variant="E"))
        yield Cell(metric, FACTORED, _control(whole))
        yield Cell(metric, "E+H", whole)
