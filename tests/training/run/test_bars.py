"""Bars move on terminals and in notebooks, and are nothing in a file."""

import io
import sys
import types

import pytest
from rich.console import Console
from rich.progress import Progress

from dh2l_jax import bars
from dh2l_jax.training.run.console import Log


class Cell:
    """What IPython's `display` gives: a place whose output is replaced."""

    def __init__(self):
        self.shown = []

    def display(self, item, display_id=None):
        assert display_id
        self.update(item)
        return self

    def update(self, item):
        self.shown.append(item._repr_mimebundle_((), ())["text/plain"])


@pytest.fixture
def cell(monkeypatch):
    cell, package = Cell(), types.ModuleType("IPython.display")
    package.display = cell.display
    monkeypatch.setitem(sys.modules, "IPython.display", package)
    monkeypatch.setattr(bars, "SECONDS", 0)
    return cell


def test_a_bar_in_a_notebook_replaces_its_output(cell):
    console = Console(force_jupyter=True, file=io.StringIO())
    with Log(3, 8, console=console) as log:
        log.start(0)
        for _ in range(3):
            log.step(1)
    first, *moves, last = cell.shown
    assert "compiling" in first
    assert [text.count("epoch 1") for text in moves] == [1, 1, 1]
    assert [f"{done}/3" in text for done, text in enumerate(moves, 1)] == [True] * 3
    assert not last.strip()


@pytest.mark.parametrize(("terminal", "hidden"), [(True, False), (True, True), (False, False)])
def test_a_bar_elsewhere_is_richs(cell, terminal, hidden):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, force_jupyter=False)
    with bars.Bar(*Progress.get_default_columns(), console=console, hidden=hidden) as bar:
        bar.advance(bar.add_task("reading", total=2))
    assert bool(file.getvalue().strip()) == (terminal and not hidden)
    assert cell.shown == []
