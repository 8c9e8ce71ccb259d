"""Files that are whole or not there: one way to write them, for data, weights and runs."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["leftovers", "name_in_errors", "open_plain", "sync_folder", "write_atomically"]

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.part")


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Replaces a file in one step: whatever happens, the old one or the whole new one is there.

    The content, or what a callable writes to the open file, goes to a new file beside it, under a
    name that nobody can guess: a link that was planted is never followed, and one at `path` itself
    is replaced. File and folder are on disk when the call returns; an error leaves nothing behind.

    Raises:
      OSError: it cannot be written; the line names the path.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_atomically(folder / "a", b"one")
    >>> write_atomically(folder / "a", lambda file: file.write(b"two"))
    >>> [(file.name, file.read_bytes()) for file in folder.iterdir()]
    [('a', b'two')]
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with name_in_errors(path):
            with temporary.open("xb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    content(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        # A folder that cannot be entered has its own error by now.
        with contextlib.suppress(OSError):
            temporary.unlink()


def leftovers(folder: Path) -> list[Path]:
    """The unfinished files that killed processes have left in a folder."""
    return [path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name)]


def open_plain(path: Path) -> io.BufferedReader:
    """A file proper, open for reading: a link is not followed, and a pipe not waited for.

    Raises:
      OSError: it is something else, or cannot be read; the error has its name.
    """
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    return os.fdopen(descriptor, "rb")


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder, so that a rename in it outlives a power cut."""
    if os.name == "nt":  # where folders cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Names the path in an error of writing, which Python leaves out where a disk is full."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"{path} cannot be written: {reason}") from error
