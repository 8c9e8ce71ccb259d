"""Where else the records of a run go: a CSV file, TensorBoard, or a logger of one's own.

A thread hands them on, so that the host, and with it the device, waits for no disk or server.
"""

from __future__ import annotations

import concurrent.futures
import csv
import importlib.util
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax

from dh2l_jax.checks import is_own, one_line, own, unknown_name
from dh2l_jax.files import append, write_atomically
from dh2l_jax.training.run.records import spreadsheet_cell

__all__ = ["Logger", "Loggers", "check_loggers"]

Record = Mapping[str, Any]


class Logger(Protocol):
    """What the function that `loggers` names returns; it is called with three arguments.

    They are the folder of the run, its config as nested plain values, and the records that it goes
    on after: what a logger has seen of later steps does not count any more.
    """

    def log(self, record: Record, /) -> None:
        """Takes a record: a line of metrics.jsonl or, at last, the scores of the result."""
        ...

    def close(self) -> None:
        """Ends; nothing follows."""
        ...


def check_loggers(names: Iterable[str]) -> None:
    """Raises a `ValueError` if a logger is unknown, or what it needs is missing."""
    for name in names:
        if is_own(name):
            own("loggers", name)
        elif name not in LOGGERS:
            raise ValueError(unknown_name("logger", name, (*LOGGERS, "package.module:function")))
        elif name == "tensorboard" and importlib.util.find_spec("tensorboardX") is None:
            raise ValueError(
                "loggers=tensorboard needs tensorboardX: pip install 'dh2l_jax[tensorboard]'"
            )


class Loggers:
    """The loggers of a run: `start` before its first record and after each roll-back, then `log`.

    One that fails is left out, with a line: the run goes on. Of several processes, the first one
    has loggers. A context manager: at its end all that was logged has been handed on.
    """

    def __init__(
        self,
        names: Sequence[str],
        workdir: Path,
        config: Record,
        print_line: Callable[[str], object],
    ):
        self._names = () if jax.process_index() else names
        self._with, self._print_line = (workdir, config), print_line
        self._open: dict[str, Logger] = {}
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "loggers")

    def __enter__(self) -> Loggers:
        return self

    def __exit__(self, *exception: object) -> None:
        self._submit(self._close)
        self._thread.shutdown()

    def start(self, records: Sequence[Record]) -> None:
        """Opens the loggers, anew if they are open."""
        self._submit(self._close)
        self._submit(self._start, list(records))

    def log(self, record: Record) -> None:
        """Hands a record on, at some time."""
        self._submit(self._each, lambda logger: logger.log(record))

    def _submit(self, function: Callable[..., None], *args: Any) -> None:
        if self._names:
            self._thread.submit(function, *args)

    def _start(self, records: list[Record]) -> None:
        for name in self._names:
            make = own("loggers", name) if is_own(name) else LOGGERS[name]
            try:
                self._open[name] = make(*self._with, records)
            except Exception as error:  # whatever the user's own code may raise
                self._fails(name, error)

    def _close(self) -> None:
        self._each(lambda logger: logger.close())
        self._open.clear()

    def _each(self, call: Callable[[Logger], object]) -> None:
        for name, logger in list(self._open.items()):
            try:
                call(logger)
            except Exception as error:  # as above
                del self._open[name]
                self._fails(name, error)

    def _fails(self, name: str, error: Exception) -> None:
        reason = " ".join(str(error).split())
        self._print_line(
            one_line(f"the logger {name} fails and is left out: {type(error).__name__}: {reason}")
        )


def flat(record: Record) -> Iterator[tuple[str, Any]]:
    """Name and value of everything in a record.

    >>> dict(flat({"step": 3, "accuracy": [0.5, None], "distance": {"1": 2.0}}))
    {'step': 3, 'accuracy_1': 0.5, 'accuracy_2': None, 'distance@1': 2.0}
    """
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from flat({f"{name}@{key}": inner for key, inner in value.items()})
        elif isinstance(value, list | tuple):
            yield from flat({f"{name}_{i}": inner for i, inner in enumerate(value, 1)})
        else:
            yield name, value


class CsvFile:
    """`metrics.csv`: a row an epoch; the scores of the result are in the last one."""

    def __init__(self, workdir: Path, config: Record, records: Iterable[Record]):
        self._path, self._rows = workdir / "metrics.csv", [dict(flat(r)) for r in records]
        self._columns: list[str] = []
        self._write()

    def log(self, record: Record) -> None:
        """Appends a row, or writes all anew where there are new columns."""
        row, last = dict(flat(record)), self._rows[-1] if self._rows else {}
        if row["step"] == last.get("step"):
            last |= row
            self._write()
            return
        self._rows.append(row)
        if row.keys() - set(self._columns):
            self._write()
        else:
            append(self._path, self._text([row]))

    def close(self) -> None:
        """Does nothing: every row is on disk."""

    def _write(self) -> None:
        self._columns = list(dict.fromkeys(name for row in self._rows for name in row))
        header = dict(zip(self._columns, self._columns, strict=True))
        write_atomically(self._path, self._text([header, *self._rows] if header else []))

    def _text(self, rows: Iterable[Record]) -> bytes:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        for row in rows:
            table.writerow([spreadsheet_cell(row.get(name)) for name in self._columns])
        return text.getvalue().encode()


class TensorBoard:
    """Event files in `tensorboard/`: a curve a number, over the steps."""

    def __init__(self, workdir: Path, config: Record, records: Sequence[Record]):
        # Imported late: an extra, which only this needs.
        from tensorboardX import SummaryWriter

        later = records[-1]["step"] + 1 if records else 1
        # Files are named by the second: one that begins at another step has a name of its own.
        self._writer = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=later, filename_suffix=f".{later}"
        )
        self._writer.add_text("config", f"```\n{json.dumps(config, indent=2)}\n```", later - 1)

    def log(self, record: Record) -> None:
        """Adds a point to each curve."""
        for name, value in flat(record):
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


LOGGERS: dict[str, Callable[..., Logger]] = {"csv": CsvFile, "tensorboard": TensorBoard}
