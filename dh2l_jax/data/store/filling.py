"""The folder of a cache while it is filled: a lock says that its process lives, and it goes if not.

<folder>/.<name>.<random>.lock      made first, held to the end, removed last
        /.<name>.<random>           filled, then renamed to <name>
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock

from dh2l_jax.files import name_in_errors

__all__ = ["filled", "remove", "remove_unfinished"]

_UNFINISHED = re.compile(r"(\..+-[0-9a-f]{16}\.[0-9a-z_]{8})(\.lock)?")


@contextlib.contextmanager
def filled(path: Path) -> Iterator[Path]:
    """A new folder that gets the name `path` when it has been filled; after an error it is gone.

    Where another process was faster, its folder stays.

    Args:
      path: its last part is NAME-KEY, with a key of 16 hexadecimal digits.

    Raises:
      OSError: it cannot be made or renamed; the line names it.
    """
    while True:
        folder = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        lock = _lock(folder)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:  # somebody who tidies up was faster
            continue
        except (OSError, NotImplementedError):  # a file system without locks: nobody tidies up
            pass
        break
    try:
        with name_in_errors(folder):
            folder.mkdir(mode=0o700)
        yield folder
        with name_in_errors(path):
            _rename(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _release(lock)


def remove_unfinished(parent: Path) -> None:
    """Removes the folders of dead processes: those whose locks nobody holds."""
    found = [_UNFINISHED.fullmatch(path.name) for path in parent.iterdir()]
    for name in {match[1] for match in found if match}:
        lock = _lock(parent / name)
        # It may be held, belong to another user, or not exist on this file system.
        with contextlib.suppress(filelock.Timeout, OSError, NotImplementedError):
            lock.acquire(blocking=False)
            shutil.rmtree(parent / name, ignore_errors=True)
            _release(lock)


def remove(path: Path) -> None:
    """Removes a folder that is no good; of a link, the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _rename(folder: Path, path: Path) -> None:
    try:
        folder.rename(path)
    except OSError:
        if path.is_symlink() or not path.is_dir():
            raise


def _lock(folder: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(folder.with_name(f"{folder.name}.lock"), fallback_to_soft=False)


def _release(lock: filelock.BaseFileLock) -> None:
    if lock.is_locked:
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()
    lock.release()
