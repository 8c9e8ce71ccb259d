"""The state of a run on disk: stored by Orbax, and held against its manifest before it is used.

A save is written apart and appears under its step in one rename, complete with its manifest. So
whatever ends a save, a kill or a full disk, the steps before it stay as they were.

All processes of a run call these functions alike; the first alone touches the disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from dh2l_jax.files import sync_folder
from dh2l_jax.training.host.processes import arrays_of_first, on_first
from dh2l_jax.training.run import evidence, manifest
from dh2l_jax.training.run.console import PrintLine
from dh2l_jax.training.run.evidence import BEST, LAST, CheckpointError, NoCheckpoint
from dh2l_jax.training.step.state import TrainState

__all__ = [
    "BEST",
    "LAST",
    "CheckpointError",
    "NoCheckpoint",
    "Saved",
    "forget_after",
    "read_params",
    "read_state",
    "restore",
    "save",
    "steps",
    "tell_what_is_kept",
]

# The folder, below that of the steps, for what is being written and what is being deleted.
_UNFINISHED = "unfinished"


class Saved(NamedTuple):
    """What a step holds.

    Attributes:
      state: after the step.
      progress: JSON values on the position of the run: of the epoch, of its data, the best so far.
    """

    state: TrainState
    progress: dict[str, Any]


# What the first process may raise for all of them, subclasses first.
_ERRORS = (NoCheckpoint, CheckpointError, ValueError, TypeError, OSError)


def save(
    workdir: Path,
    state: TrainState,
    progress: dict[str, Any] | None = None,
    folder: str = LAST,
    *,
    keep: int = 3,
    data: bytes | None = None,
) -> Path:
    """Writes a state and the progress of its run under its step; its folder, when all is on disk.

    Config and records of the run are copied beside them, see `evidence`.

    A step of the same number is replaced. Of the older ones the newest stay; newer ones, which
    belong to a future that was given up, go.

    Args:
      progress: JSON values; floats come back in every bit.
      keep: how many steps stay, this one among them.
      data: a record of what the run is trained on.

    Raises:
      OSError: it cannot be written; the line names the reason and the newest step that is intact.
    """
    path, step = workdir / folder, int(state.step)
    tree = _tree(state)

    def write() -> None:
        files = evidence.collect(workdir, data)
        _save(path, step, jax.device_get(tree), progress or {}, keep, files)

    on_first(write, _ERRORS)
    return path / str(step)


def steps(workdir: Path, folder: str = LAST) -> list[int]:
    """The steps saved in a folder, ascending; none if there is no folder."""
    return on_first(lambda: evidence.steps(workdir / folder), _ERRORS)


def forget_after(workdir: Path, step: int, folder: str = BEST) -> None:
    """Removes the steps after one: a run that goes back to it will save them again.

    Raises:
      OSError: they cannot be removed.
    """
    path = workdir / folder
    on_first(
        lambda: _discard(path, [other for other in evidence.steps(path) if other > step]), _ERRORS
    )


def restore(
    workdir: Path,
    like: TrainState,
    folder: str = LAST,
    *,
    print_line: PrintLine | None = None,
    before: int | None = None,
) -> Saved:
    """The newest intact step of a folder, bit for bit as it was saved.

    Args:
      like: a state of the structure, shapes, dtypes and placement to return; it may be abstract.
      print_line: names each damaged step that is passed over; by default a warning does.
      before: consider only steps before this one.

    Raises:
      NoCheckpoint: there is no step.
      CheckpointError: every step is damaged, or the newest intact one belongs to another model.
      OSError: the folder cannot be read.
    """
    path, template = workdir / folder, _tree(like)
    arrays = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)

    def read() -> dict[str, Any]:
        nonlocal arrays
        arrays, progress = _newest_intact(path, arrays, print_line or _warn, before)
        return progress

    progress = on_first(read, _ERRORS)
    arrays = jax.tree.map(_place, arrays_of_first(arrays), template)
    return Saved(TrainState(**arrays), progress)


def read_params(
    workdir: Path, folder: str = LAST, *, print_line: PrintLine | None = None
) -> dict[str, Any]:
    """The parameters of the newest intact step or their running means, see `read_state`."""
    state = read_state(workdir, folder, print_line=print_line)
    return state.get("ema", state)["params"]


def read_state(
    workdir: Path, folder: str = LAST, *, print_line: PrintLine | None = None
) -> dict[str, Any]:
    """All that the newest intact step holds, of any model, by the fields of `TrainState`, in NumPy.

    One that is None is not there.

    Raises:
      NoCheckpoint: there is no step.
      CheckpointError: every step is damaged.
      OSError: the folder cannot be read.
    """
    path = workdir / folder
    for step in reversed(evidence.steps(path)):
        if manifest.problem(path / str(step)) is None:
            with _manager(path) as manager:
                found = manager.item_metadata(step).get("state")
            like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), found)
            return _newest_intact(path, like, print_line or _warn, None)[0]
    return _newest_intact(path, {}, print_line or _warn, None)[0]


@contextlib.contextmanager
def tell_what_is_kept(workdir: Path) -> Iterator[None]:
    """Adds to an `OSError` of another write of the run which of its steps is intact."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{error}; {_what_is_kept(workdir / LAST)}") from error


def _save(
    path: Path,
    step: int,
    tree: Any,
    progress: dict[str, Any],
    keep: int,
    files: Mapping[str, bytes],
) -> None:
    evidence.steps(path)  # refuses a link before anything is written
    unfinished, target = path / _UNFINISHED, path / str(step)
    try:
        _clear(unfinished)  # what a save left that was cut off
        unfinished.mkdir(parents=True, exist_ok=True)
        _check_space(unfinished, tree, files)
        # Each save has a place of its own: threads of one that failed may still write to theirs.
        place = Path(tempfile.mkdtemp(dir=unfinished))
        with _silent_threads(), _manager(place) as manager:
            state = ocp.args.StandardSave(tree)
            args = ocp.args.Composite(state=state, progress=ocp.args.JsonSave(progress))
            manager.save(step, args=args)
        for name, content in files.items():
            (place / str(step) / name).write_bytes(content)
        manifest.write(place / str(step))
        _put(place / str(step), target, place / "replaced")
        found = evidence.steps(path)
        kept = [other for other in found if other <= step][-keep:]
        _discard(path, set(found) - set(kept))
    except (OSError, ValueError) as error:
        reason = _storage_reason(error)
        if reason is None:
            raise
        _clear(unfinished)
        raise OSError(f"cannot save {target}: {reason}; {_what_is_kept(path)}") from error


@contextlib.contextmanager
def _silent_threads() -> Iterator[None]:
    """Keeps Orbax's threads from logging, with tracebacks, what is raised here as well."""
    logger = logging.getLogger("absl")
    logger.disabled, before = True, logger.disabled
    try:
        yield
    finally:
        logger.disabled = before


def _check_space(path: Path, tree: Any, files: Mapping[str, bytes]) -> None:
    """Fails where a save cannot fit, before it is begun: Orbax, cut off, would print pages."""
    leaves = jax.tree.leaves(tree)
    # Orbax writes a description of each leaf beside its numbers, below 1 KiB, and some fixed files.
    needed = 2**17 + sum(leaf.nbytes + 1024 for leaf in leaves) + sum(map(len, files.values()))
    if shutil.disk_usage(path).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _put(new: Path, target: Path, aside: Path) -> None:
    """Moves a folder to its place, and what is there aside."""
    if target.exists():
        target.rename(aside)
    try:
        new.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
    sync_folder(target.parent)


def _discard(path: Path, gone: Iterable[int]) -> None:
    """Removes steps, each from its place in one rename: none is ever seen half deleted."""
    unfinished = path / _UNFINISHED
    for step in gone:
        unfinished.mkdir(exist_ok=True)
        (path / str(step)).rename(unfinished / f"{step}.gone")
    _clear(unfinished)


def _clear(folder: Path) -> None:
    """Removes a folder, or what was planted in its place."""
    with contextlib.suppress(OSError):
        folder.unlink()  # a link or a file: a folder refuses
    shutil.rmtree(folder, ignore_errors=True)


def _storage_reason(error: Exception) -> str | None:
    """What the system said, if the error is one of storage."""
    if isinstance(error, OSError):
        # The system's own words are in the cause where the error names a path.
        return getattr(error.__cause__ or error, "strerror", None) or str(error).splitlines()[0]
    code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's, in a ValueError
    return os.strerror(int(code[1])) if code else None


def _what_is_kept(path: Path) -> str:
    try:
        found = reversed(evidence.steps(path))
        step = next((step for step in found if not manifest.problem(path / str(step))), None)
    except OSError:
        step = None
    return "no step is kept" if step is None else f"step {step} is kept"


def _newest_intact(
    path: Path, like: Any, print_line: PrintLine, before: int | None
) -> tuple[Any, dict[str, Any]]:
    """The newest intact step of those before one; says which newer ones are damaged."""
    found = [step for step in reversed(evidence.steps(path)) if before is None or step < before]
    if not found:
        range_ = "" if before is None else f" before step {before}"
        raise NoCheckpoint(f"no checkpoint in {path}{range_}: the run has not saved its state")
    damaged = []
    for step in found:
        problem = manifest.problem(path / str(step))
        if problem is None:
            tree, progress = _read(path, step, like)
            if tree["step"] == step:
                for line in damaged:
                    print_line(f"{line}: step {step} is used in its place")
                return tree, progress
            problem = f"it holds step {tree['step']}"
        damaged.append(f"checkpoint {path / str(step)} is damaged ({problem})")
    raise CheckpointError(f"{damaged[0]}, and there is no intact one before it")


def _read(path: Path, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    """What an intact step holds, if it has the leaves of `like`."""
    name = f"checkpoint {path / str(step)}"
    with _manager(path) as manager:
        metadata = manager.item_metadata(step)
        difference = _difference(_leaves(metadata.get("state") or {}), _leaves(like))
        if difference:
            raise CheckpointError(f"{name} belongs to another model: {difference}")
        state, progress = ocp.args.StandardRestore(like), ocp.args.JsonRestore()
        try:
            found = manager.restore(step, args=ocp.args.Composite(state=state, progress=progress))
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise CheckpointError(f"{name} cannot be read: {str(error).splitlines()[0]}") from error
    return found["state"], found["progress"]


def _leaves(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Path → shape and dtype."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (tuple(leaf.shape), str(leaf.dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """The first leaf that differs: of the parameters, or else of the rest."""
    names = found.keys() | expected.keys()
    for name in sorted(names, key=lambda name: (not name.startswith("params/"), name)):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is not expected"
        for what, there, wanted in zip(("shape", "type"), found[name], expected[name], strict=True):
            if there != wanted:
                return f"{name} has the {what} {there}, expected {wanted}"
    return None


def _tree(state: TrainState) -> dict[str, Any]:
    """The fields of a state that it has: what is stored names them, and not the class."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if value is not None}


def _place(array: np.ndarray, like: Any) -> jax.Array:
    """An array on the devices of `like`, of which each process fills its own."""
    sharding = getattr(like, "sharding", None)
    if sharding is None:
        return jax.numpy.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _manager(path: Path) -> ocp.CheckpointManager:
    """Orbax's manager of a folder that exists, for the first process; it opens no step unasked."""
    processes = ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
    )
    options = ocp.CheckpointManagerOptions(
        create=False,
        enable_async_checkpointing=False,
        lightweight_initialize=True,
        multiprocessing_options=processes,
    )
    handlers = {
        "state": ocp.StandardCheckpointHandler(multiprocessing_options=processes),
        "progress": ocp.JsonCheckpointHandler(multiprocessing_options=processes),
    }
    return ocp.CheckpointManager(path.absolute(), options=options, item_handlers=handlers)


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=2)
