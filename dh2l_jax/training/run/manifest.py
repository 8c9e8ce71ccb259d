"""SHA-256 of all files of a folder, in the format of `sha256sum`: what makes damage visible.

No common checkpoint format notices every flipped bit. `sha256sum -c SHA256SUMS` in the folder
checks the same by hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from dh2l_jax.files import sync_folder, write_atomically

__all__ = ["NAME", "intact_file", "problem", "write"]

NAME = "SHA256SUMS"

_LINE = re.compile("([0-9a-f]{64})  (.+)")
# More than any checkpoint's manifest; of a larger file no more is read.
_MAX_BYTES = 16 * 2**20


def write(folder: Path) -> None:
    """Writes the manifest of all files below a folder, in one rename; all is on disk then.

    Files and folders are flushed before it, so the manifest never outlives what it lists.

    Raises:
      ValueError: something is no plain file, or has a name that a line cannot hold.
      OSError: a file cannot be read, or the manifest cannot be written.
    """
    lines = []
    for name in sorted(_names(folder) - {NAME}):
        if not name.isprintable() or "\\" in name or not _is_plain(folder / name):
            raise ValueError(f"{folder}: cannot be listed in {NAME}: {name!a}")
        with (folder / name).open("rb") as file:
            lines.append(f"{_digest(file)}  {name}\n")
            os.fsync(file.fileno())
    for root, _, _ in os.walk(folder):
        sync_folder(Path(root))
    write_atomically(folder / NAME, "".join(lines).encode())


def problem(folder: Path) -> str | None:
    """What is wrong below a folder, in one phrase that names a file; None if all is intact.

    Nothing outside the folder is opened, whatever its manifest or a link in it says.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "weights").write_bytes(b"abc")
    >>> write(folder)
    >>> print(problem(folder))
    None
    >>> _ = (folder / "weights").write_bytes(b"abb")
    >>> problem(folder)
    'weights: SHA-256 differs'
    """
    try:
        return _difference(folder, _read(folder))
    except ValueError as error:
        return str(error)


def intact_file(folder: Path, name: str) -> bytes | None:
    """The content of one file, if it is the one that the folder's manifest lists; else None."""
    try:
        digest = _read(folder).get(name)
        with _opened(folder, name) as file:
            content = file.read()
    except ValueError:
        return None
    return content if hashlib.sha256(content).hexdigest() == digest else None


def _difference(folder: Path, listed: dict[str, str]) -> str | None:
    """The first difference between a manifest and the files: of the names, then of the contents."""
    found = _names(folder) - {NAME}
    for name in sorted(listed.keys() - found):
        return f"{name} is missing"
    for name in sorted(found - listed.keys()):
        return f"{name if name.isprintable() else ascii(name)} is not listed"
    for name, digest in listed.items():
        with _opened(folder, name) as file:
            if _digest(file) != digest:
                return f"{name}: SHA-256 differs"
    return None


def _read(folder: Path) -> dict[str, str]:
    """Name → digest, as listed; a line that `write` would not have written is refused."""
    with _opened(folder, NAME) as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{NAME} is larger than {_MAX_BYTES:,} bytes")
    # Bytes that are not UTF-8 become surrogates, which are not printable.
    lines = data.decode(errors="surrogateescape").split("\n")
    listed = {}
    for number, line in enumerate(lines[:-1], 1):
        match = _LINE.fullmatch(line)
        if match is None or not line.isprintable() or match[2] in listed:
            raise ValueError(f"{NAME}: line {number} is damaged")
        listed[match[2]] = match[1]
    if lines[-1] or not listed:
        raise ValueError(f"{NAME}: line {len(lines)} is damaged")
    return listed


def _names(folder: Path) -> set[str]:
    """Paths, relative to a folder, of all below it that is no folder; links are not followed."""

    def fail(error: OSError) -> None:
        raise ValueError(f"{folder.name}: {error.strerror}") from error

    names = set()
    for root, folders, files in os.walk(folder, onerror=fail):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        names |= {(Path(root) / name).relative_to(folder).as_posix() for name in files + links}
    return names


@contextlib.contextmanager
def _opened(folder: Path, name: str) -> Iterator[io.BufferedReader]:
    """A plain file below a folder; whatever its reading meets is a ValueError that names it."""
    try:
        if not _is_plain(folder / name):
            raise ValueError(f"{name} is no plain file")
        with (folder / name).open("rb") as file:
            yield file
    except FileNotFoundError:
        raise ValueError(f"{name} is missing") from None
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}") from error


def _is_plain(path: Path) -> bool:
    """Whether it is a file proper: opening a pipe would hang, and a link leads elsewhere."""
    return stat.S_ISREG(path.lstat().st_mode)


def _digest(file: io.BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()
