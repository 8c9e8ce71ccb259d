"""Compiled programs, kept in the user's cache folder from one command to the next."""

from __future__ import annotations

import contextlib
import os
import stat
import warnings
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache
from platformdirs import user_cache_path

from dh2l_jax.training.host import allocator

__all__ = ["cores", "keep_programs", "prepare_jax"]

MAX_BYTES = 256 << 20  # a training step of ResNet-20 takes 0.6 MB
MAX_PROGRAMS = 1_000  # JAX looks at all of them to add one, 33 ms for a thousand


def prepare_jax() -> None:
    """Makes the process of a command ready: compiled programs and freed memory are kept.

    The settings are those of the whole process, so a command calls this, and no library. It asks
    for the devices: several processes must have found each other.
    """
    keep_programs()
    if jax.default_backend() == "cpu":
        allocator.keep_freed_memory()


def keep_programs() -> None:
    """Tells JAX to keep compiled programs, unless its user has told it where, or not to.

    What is damaged, deleted or can't be written is compiled as if nothing were kept. JAX knows a
    program by its operations, its options, the version of the compiler and the features of the
    CPU, or the accelerator: a folder that several machines share does no harm.
    """
    theirs = jax.config.values
    if theirs["jax_compilation_cache_dir"] or not theirs["jax_enable_compilation_cache"]:
        return
    try:
        gate = user_cache_path("dh2l_jax", appauthor=False) / "compiled"
        gate.parent.mkdir(parents=True, exist_ok=True)
        gate.mkdir(mode=0o700, exist_ok=True)
        if not _is_ours_alone(gate):
            return
        folder = gate / f"{len(cores())}-cores"
        folder.mkdir(exist_ok=True)
    except (OSError, RuntimeError):  # it cannot be made, or there is no home folder
        return
    with contextlib.suppress(OSError):  # another process may tidy up too
        _tidy(folder)
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    for option, value in {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": MAX_BYTES,
        # By default only what takes a second is kept; a run has twenty programs below that.
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        # XLA's own files would have no bound, and their place would be a part of every key.
        "jax_persistent_cache_enable_xla_caches": "none",
    }.items():
        jax.config.update(option, value)
    compilation_cache.reset_cache()  # without this, a process that has compiled ignores the folder


def cores() -> list[int]:
    """Those that this process may use.

    XLA divides the loops of a program between them, and JAX finds it again with any number.
    """
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _is_ours_alone(folder: Path) -> bool:
    """Whether nobody else can put programs there, which would run here."""
    if os.name == "nt":  # where a user's folders are his own, and modes say nothing
        return True
    about = folder.lstat()
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o22


def _tidy(folder: Path) -> None:
    """Removes what a killed process has left half written, and all but the last programs used.

    A program is a file -cache and, written after it, a file -atime, the time of its last use. JAX
    stops to add programs where it finds one without the other.
    """
    times = {file.name: file.stat().st_mtime for file in os.scandir(folder)}
    used = sorted(times, key=times.__getitem__, reverse=True)
    names = [name.removesuffix("-atime") for name in used if name.endswith("-atime")]
    names = [name for name in names if f"{name}-cache" in times][:MAX_PROGRAMS]
    for name in times.keys() - {name + end for name in names for end in ("-cache", "-atime")}:
        if name.endswith(("-cache", "-atime")):
            (folder / name).unlink(missing_ok=True)
