"""The folder of a run: the names of its files, its config, and who may write to it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from dh2l_jax.files import leftovers, read_plain
from dh2l_jax.training.config import Config, DistributedConfig, from_dict, same_run, to_dict
from dh2l_jax.training.host.processes import on_first
from dh2l_jax.training.run import evidence
from dh2l_jax.training.run.evidence import CONFIG, METRICS
from dh2l_jax.training.run.lock import Lock
from dh2l_jax.training.run.records import (
    read_sealed,
    refuse_damaged,
    write_json,
)

__all__ = [
    "BEST",
    "CONFIG",
    "LAST",
    "METRICS",
    "OUTPUTS",
    "RESULT",
    "TEST",
    "is_finished",
    "is_run",
    "new_folder",
    "opened",
    "outputs_name",
    "read_config",
    "read_result",
    "refuse_damaged_run",
    "refuse_foreign_folder",
    "refuse_lost_checkpoints",
]

RESULT, TEST, OUTPUTS = "result.json", "test.json", "outputs.npz"
LAST, BEST = "last", "best_on_validation"
"""The states that the file TEST has scores of."""
LOCK = ".lock"
# Paths below which no checkpoint can be read again: Orbax takes brackets for a pattern, TensorStore
# a backslash for a slash.
UNREADABLE = re.compile(r"\[.*\]" if os.name == "nt" else r"\[.*\]|\\")


def outputs_name(state: str) -> str:
    """The file of the outputs on the test images of one of the states that TEST has scores of."""
    return f"test_{state}_{OUTPUTS}"


def new_folder(name: str) -> Path:
    """The folder of a run that nobody has named: by what it is of, and the time."""
    return Path("runs") / f"{name.replace(':', '-')}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def is_run(workdir: Path) -> bool:
    """Whether the folder holds a run, finished or not."""
    return (workdir / CONFIG).is_file()


def is_finished(workdir: Path) -> bool:
    """Whether the folder holds a finished run: its result is what a run writes last."""
    return is_run(workdir) and (workdir / RESULT).is_file()


def read_config(workdir: Path) -> Config:
    """The config of the run in a folder, held against its checkpoints.

    Raises:
      ValueError: the folder holds no run, or its config is damaged; the line says what is wrong.
      OSError: it cannot be read.
    """
    path = workdir / CONFIG
    if not path.is_file():
        raise ValueError(f"{workdir} holds no run: expected the file {path}")
    try:
        values = json.loads(read_plain(path).decode("utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path}: sections within sections without end") from error
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    evidence.refuse_damaged_config(path, workdir / evidence.LAST)
    return from_dict(values)


def read_result(workdir: Path) -> dict[str, Any]:
    """The result of the finished run in a folder, which must be intact with the files it names.

    Raises:
      ValueError: the run is not finished, or a file is damaged.
      OSError: a file cannot be read.
    """
    if not is_finished(workdir):
        raise ValueError(
            f"{workdir} holds a run that is not finished: `dh2l train --workdir {workdir}` goes on"
            if is_run(workdir)
            else f"{workdir} holds no run: expected the file {workdir / CONFIG}"
        )
    try:
        values = read_sealed(workdir / RESULT)
    except ValueError as error:
        raise ValueError(
            f"{workdir / RESULT} is damaged: {error}: remove it, and the run makes it anew"
        ) from error
    refuse_damaged(workdir, values)
    return values


def refuse_damaged_run(workdir: Path, step: int) -> None:
    """Raises a `CheckpointError` if config or records are not what a restored step holds."""

    def check() -> None:
        folder = workdir / evidence.LAST
        try:
            evidence.refuse_damaged_config(workdir / CONFIG, folder)
            evidence.refuse_damaged_records(workdir / METRICS, folder / str(step))
        except (ValueError, OSError) as error:
            raise evidence.CheckpointError(str(error)) from error

    on_first(check, (evidence.CheckpointError,))


def refuse_lost_checkpoints(workdir: Path) -> None:
    """Raises a `CheckpointError` if a run without checkpoints has had some, as its records tell.

    A run that was killed in its first save has a folder for them, and one record at most.
    """

    def check() -> None:
        folder, path = workdir / evidence.LAST, workdir / METRICS
        # Half a line is no record: a killed process leaves one.
        count = read_plain(path).count(b"\n") if path.exists() else 0
        if count > 1 or (count and not folder.exists()):
            raise evidence.CheckpointError(
                f"{folder} holds no checkpoint, and {path} has {count} records: put the folder "
                f"back, or remove {METRICS} to start anew"
            )
        folder.mkdir(parents=True, exist_ok=True)

    on_first(check, (evidence.CheckpointError, OSError))


def refuse_foreign_folder(workdir: Path, config: Config) -> None:
    """Raises where a run of this config may neither begin nor go on; nothing is written.

    Raises:
      ValueError: the folder holds a run with other options, or something that is no run.
      OSError: it cannot be read.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", str(workdir)):
        raise ValueError(f"workdir {workdir}: expected a folder of this machine, found an address")
    if re.search("[\ud800-\udfff]", str(workdir.absolute())):  # bytes that are no letters
        raise ValueError(f"workdir {workdir}: Orbax takes no name that is not UTF-8")
    if UNREADABLE.search(str(workdir.absolute())):
        raise ValueError(
            f"workdir {workdir}: checkpoints could not be read again below a path with brackets "
            "or a backslash: choose another"
        )
    if is_run(workdir):
        difference = same_run(read_config(workdir), config)
        if difference:
            raise ValueError(
                f"workdir {workdir} holds a run with other options: {difference}: choose another "
                "folder, or give its options, or none, to go on with it"
            )
    elif workdir.exists() and not (workdir.is_dir() and _is_empty(workdir)):
        raise ValueError(
            f"workdir {workdir} exists already and is never overwritten: choose another"
        )


def _is_empty(folder: Path) -> bool:
    """Whether it holds nothing but what a run leaves that is killed at its very start."""
    return not {*folder.iterdir()} - {folder / LOCK, *leftovers(folder)}


@contextlib.contextmanager
def opened(workdir: Path, config: Config) -> Iterator[None]:
    """Keeps the folder for this run, and makes it if it is a new one.

    Of several processes of a run, the first one keeps it for all. Ask `refuse_foreign_folder`
    before: under the lock it is asked again, when another run may have begun in between.

    Raises:
      ValueError: another run is under way there, or the folder is another run's by now.
      OSError: it cannot be made.
    """
    if jax.process_index():
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with Lock(workdir / LOCK):
        refuse_foreign_folder(workdir, config)
        for path in leftovers(workdir):
            path.unlink()
        if not is_run(workdir):
            # The processes are left out: each command that goes on with the run names its own.
            alone = dataclasses.replace(config, distributed=DistributedConfig())
            write_json(workdir / CONFIG, to_dict(alone))
        yield
