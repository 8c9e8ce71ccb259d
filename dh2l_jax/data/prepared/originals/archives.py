"""Reader of an allow-list of members of a tar archive, plain or gzipped, in memory.

Nothing is written to disk, and only members whose full name was asked for are returned. An archive
is untrusted: sizes are checked before anything is read, links and devices are refused where a file
was asked for, and whatever is wrong is one `ValueError` that says what was expected and found.
"""

from __future__ import annotations

import contextlib
import gzip
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = ["iter_members", "missing_names", "read_members"]

# The largest member of an original is CIFAR-100's (154 MB); CUB has the most, 12,000 of 1.2 GB.
MAX_MEMBER = 2**28
MAX_TOTAL = 2**32
MAX_MEMBERS = 2**17

_GZIP = b"\x1f\x8b"
_DAMAGE = (tarfile.TarError, zlib.error, EOFError, OSError, OverflowError, RecursionError)
_KINDS = {
    tarfile.DIRTYPE: "a folder",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


def read_members(path: str | Path, names: Iterable[str]) -> dict[str, bytes]:
    """The named members of an archive, all of them at once; see `iter_members`.

    >>> import io, tempfile
    >>> path = Path(tempfile.mkdtemp(), "a.tgz")
    >>> with tarfile.open(path, "w:gz") as archive:
    ...     for name in ("a/1.txt", "a/2.txt"):
    ...         info = tarfile.TarInfo(name)
    ...         info.size = 5
    ...         archive.addfile(info, io.BytesIO(b"hello"))
    >>> read_members(path, ["a/2.txt"])
    {'a/2.txt': b'hello'}
    """
    return dict(iter_members(path, names))


def iter_members(path: str | Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """The named members of an archive one by one, in the order of the archive.

    The archive is read to its end, so that a gzip checksum is verified too.

    Args:
      path: the archive.
      names: full names of regular files in it, each of at most `MAX_MEMBER` bytes.

    Raises:
      ValueError: the archive is damaged or no tar archive, a member points outside of it, or a
        named member is missing, occurs twice, is no regular file or is too large.
      OSError: the file cannot be opened.
    """
    path, wanted = Path(path), frozenset(names)
    found: set[str] = set()
    with _open(path) as file:
        try:
            for name, data in _members(_Stream(file), wanted):
                if name in found:
                    raise ValueError(f"the member {name!r} occurs twice")
                found.add(name)
                yield name, data
        except (*_DAMAGE, UnicodeError) as error:
            raise ValueError(f"{path}: expected a whole tar archive, found: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if found != wanted:
        raise ValueError(f"{path}: {missing_names(wanted - found)} missing in the archive")


def missing_names(names: Iterable[str]) -> str:
    """A short list of names for a message.

    >>> missing_names(f"{i}.jpg" for i in range(5))
    '0.jpg, 1.jpg, 2.jpg and 2 more'
    """
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    """The archive's bytes, inflated if they are gzipped; the content decides, not the name."""
    with path.open("rb") as file:
        head = file.read(64)
        file.seek(0)
        if not head:
            raise ValueError(f"{path}: expected a tar archive, found an empty file")
        if head.lstrip().startswith(b"<"):
            raise ValueError(
                f"{path}: expected a tar archive, found a web page, which a server sent in its "
                "place: fetch the file again"
            )
        if head.startswith(_GZIP):
            with gzip.GzipFile(fileobj=file, mode="rb") as inflated:
                yield inflated
        else:
            yield file


def _members(stream: _Stream, wanted: frozenset[str]) -> Iterator[tuple[str, bytes]]:
    """The wanted members, checked, in the order of the archive."""
    # The stream has limits: tarfile alone would read a long name of any size into memory.
    with tarfile.TarFile(fileobj=stream, encoding="utf-8") as archive:  # pyright: ignore
        for count, member in enumerate(archive, 1):
            if count > MAX_MEMBERS:
                raise ValueError(f"expected at most {MAX_MEMBERS} members, found more")
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts:
                raise ValueError(f"the member {member.name!r} points outside of the archive")
            if member.name in wanted:
                yield member.name, _read(stream, member)
    while stream.read(2**16):
        pass


def _read(stream: _Stream, member: tarfile.TarInfo) -> bytes:
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        kind = _KINDS.get(member.type, "of a special kind")
        raise ValueError(f"the member {member.name!r} is {kind}, expected a regular file")
    if not 0 <= member.size <= MAX_MEMBER:
        raise ValueError(
            f"the member {member.name!r} declares {member.size} bytes, expected at most "
            f"{MAX_MEMBER}"
        )
    stream.seek(member.offset_data)
    data = stream.read(member.size)
    if len(data) != member.size:
        raise tarfile.ReadError(
            f"{len(data)} of the {member.size} bytes of the member {member.name!r}"
        )
    return data


class _Stream:
    """What tarfile needs of a file: read, seek and tell; forwards only and within the limits."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._position = 0

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_MEMBER:
            raise ValueError(f"a header asks for {size} bytes, expected at most {MAX_MEMBER}")
        self._check(self._position + size)
        data = self._file.read(size)
        self._position += len(data)
        return data

    def seek(self, position: int) -> int:
        if position < self._position:
            raise ValueError(f"a header points back, from {self._position} to {position}")
        self._check(position)
        while self._position < position:
            if not self.read(min(2**20, position - self._position)):
                break
        return self._position

    def _check(self, position: int) -> None:
        if position > MAX_TOTAL:
            raise ValueError(
                f"expected at most {MAX_TOTAL} bytes in all, found at least {position}"
            )
