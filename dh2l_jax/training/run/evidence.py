"""What a checkpoint holds of its run besides the state: what the files of the run are held against.

The config and the records up to the step are copied as they are; of the data there is a record,
whose content is nobody's business here. All lie below the manifest of the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from dh2l_jax.files import read_plain
from dh2l_jax.training.run import manifest

__all__ = [
    "BEST",
    "CONFIG",
    "DATA",
    "LAST",
    "METRICS",
    "CheckpointError",
    "NoCheckpoint",
    "collect",
    "data_record",
    "refuse_damaged_config",
    "refuse_damaged_records",
    "steps",
]

CONFIG, METRICS, DATA = "config.json", "metrics.jsonl", "data.npz"
LAST, BEST = "checkpoints", "checkpoints_best"
"""Folders of the last states of a run, and of the best on held-out images."""


class CheckpointError(ValueError):
    """No checkpoint can be used."""


class NoCheckpoint(CheckpointError):
    """Nothing has been saved yet: a run may start anew."""


def collect(workdir: Path, data: bytes | None) -> dict[str, bytes]:
    """The files that a checkpoint takes along, by name."""
    found = {name: workdir / name for name in (CONFIG, METRICS)}
    copies = {name: read_plain(path) for name, path in found.items() if path.exists()}
    return copies if data is None else copies | {DATA: data}


def steps(path: Path) -> list[int]:
    """The steps saved in a folder, ascending; none if there is no folder. Links are none.

    Raises:
      OSError: the folder itself is a link, or cannot be read.
    """
    if path.is_symlink():
        raise OSError(f"{path} is a link, which is never followed: put the folder in its place")
    entries = path.iterdir() if path.is_dir() else ()
    names = [entry.name for entry in entries if entry.is_dir() and not entry.is_symlink()]
    numbers = [int(name) for name in names if name.isascii() and name.isdecimal()]
    return sorted(number for number in numbers if str(number) in names)


def data_record(path: Path) -> bytes | None:
    """What the newest step of a folder that has an intact record holds of the data."""
    for folder in _newest_first(path):
        content = manifest.intact_file(folder, DATA)
        if content is not None:
            return content
    return None


def refuse_damaged_config(config: Path, path: Path) -> None:
    """Raises a `ValueError` if the config is not what the newest intact step was saved with."""
    content = read_plain(config)
    for folder in _newest_first(path):
        copy = manifest.intact_file(folder, CONFIG)
        if copy == content:
            return
        if copy is not None:
            raise ValueError(
                f"{config} is not what step {folder.name} was saved with: put "
                f"{folder / CONFIG} in its place"
            )


def refuse_damaged_records(records: Path, folder: Path) -> None:
    """Raises a `ValueError` if the records up to a step, an intact one, are not those it holds.

    Later ones may follow. A step of an earlier version holds none.
    """
    copy = folder / METRICS
    if not copy.exists():
        return
    kept, found = read_plain(copy), read_plain(records) if records.exists() else b""
    if found.startswith(kept):
        return
    lines = zip_longest(kept.split(b"\n"), found.split(b"\n"))
    number = next(number for number, (one, other) in enumerate(lines, 1) if one != other)
    raise ValueError(
        f"{records}: line {number} is not what step {folder.name} was saved with: put {copy} in "
        "its place"
    )


def _newest_first(path: Path) -> Iterator[Path]:
    return (path / str(step) for step in reversed(steps(path)))
