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

__all__ = [
    "append",
    "leftovers",
    "name_in_errors",
    "open_plain",
    "open_to_append",
    "read_plain",
    "sync_folder",
    "write_atomically",
]

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
    return os.fdopen(_descriptor(path, os.O_RDONLY), "rb")


def read_plain(path: Path) -> bytes:
    """The content of a file proper, see `open_plain`; the line of an error names the path."""
    try:
        with open_plain(path) as file:
            return file.read()
    except OSError as error:
        raise OSError(f"{path} cannot be read: {_reason(error)}") from error


def append(path: Path, content: bytes) -> None:
    """Adds to the end of a file proper, or begins one; all is on disk when the call returns.

    Raises:
      OSError: it cannot be written, or is a link; the line names the path.
    """
    is_new = not path.exists()
    with name_in_errors(path):
        with open_to_append(path) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(path.parent)


def open_to_append(path: Path) -> io.BufferedWriter:
    """A file proper, open to be added to, and made if it is missing; see `open_plain`."""
    return os.fdopen(_descriptor(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")


def _descriptor(path: Path, flags: int) -> int:
    # Windows has none of these.
    flags |= sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    return descriptor


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
        raise OSError(f"{path} cannot be written: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "it is a link, which is never followed"
    return error.strerror or str(error)
