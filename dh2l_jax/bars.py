"""A bar that moves on a terminal and in the cell of a notebook, and is nothing anywhere else."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.text import Text

__all__ = ["Bar"]

SECONDS = 0.2  # between two pictures of a bar in a cell


class Bar(Progress):
    """Rich's bar, gone when it ends. In a cell it needs no widgets: its output is replaced.

    Args:
      columns: of the bar.
      console: where it is shown.
      hidden: whether it is shown nowhere.
    """

    def __init__(self, *columns: str | ProgressColumn, console: Console, hidden: bool = False):
        shown = console.is_terminal or console.is_jupyter
        super().__init__(*columns, console=console, transient=True, disable=hidden or not shown)
        self._cell: Any = None
        self._last = 0.0

    def start(self) -> None:
        """Shows it."""
        if self.disable or not self.console.is_jupyter:
            super().start()
            return
        # A kernel has it; nothing else needs it.
        from IPython.display import display  # pyright: ignore[reportMissingImports]

        self._cell = display(self, display_id=True)

    def stop(self) -> None:
        """Takes it away."""
        if self._cell is None:
            super().stop()
            return
        self._cell.update(Text(""))
        self._cell = None

    def advance(self, *arguments: Any, **options: Any) -> None:
        """Moves it on, see `rich.progress.Progress.advance`."""
        super().advance(*arguments, **options)
        self._replace()

    def update(self, *arguments: Any, **options: Any) -> None:
        """Changes it, see `rich.progress.Progress.update`."""
        super().update(*arguments, **options)
        self._replace()

    def _replace(self) -> None:
        now = time.monotonic()
        if self._cell is not None and now - self._last >= SECONDS:
            self._cell.update(self)
            self._last = now
