"""The three containers of a `.pth` file: what torch has written since 2020, 2018 and 2016.

    zip     torch ≥ 1.6        data.pkl, and a stored member for each storage
    stream  torch 0.2 to 1.5   five pickles, then the storages one after the other
    tar     torch 0.1, 2016    members "storages", "tensors" and "pickle"

Each reader takes the bytes of a file and gives the pickled value with its tensors filled in. Their
numbers are views of those bytes: nothing is inflated, copied or extracted.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from dh2l_jax.models.weights.pickles import PthError, load, quote
from dh2l_jax.models.weights.tensors import (
    MAX_AXES,
    Storage,
    Storages,
    Tensor,
    make_tensor,
    vocabulary,
)

__all__ = ["read_container"]

_STREAM_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM_PROTOCOL = 1001
_MAX_RECORDS = 2**16  # members of a zip file; storages or tensors of a tar file
_MAX_TAR_MEMBERS = 64
_BLOCK = 512

# All that `ZipFile` raises when it reads a directory of random bytes.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    OSError,
    OverflowError,
    ValueError,
    struct.error,
)


def read_container(data: bytes) -> Any:
    """The pickled value of a file; tells the container by the first bytes.

    Raises:
      PthError: none of the three containers, or a damaged one.
    """
    if data[:4] == b"PK\3\4":
        return _read_zip(data)
    if data[257:262] == b"ustar":
        return _read_tar(memoryview(data))
    if data[:1] == b"\x80":
        return _read_stream(memoryview(data))
    raise PthError(f"expected a zip, stream or tar file of torch.save, found {data[:12]!r}")


class _Cursor:
    """A position in the bytes of a file, which moves over pickles, numbers and arrays."""

    def __init__(self, data: memoryview, persistent: Callable[[Any], Any]) -> None:
        self.data, self.position = data, 0
        self.vocabulary = vocabulary(persistent)

    def pickle(self) -> Any:
        value, self.position = load(self.data, self.position, self.vocabulary)
        return value

    def numbers(self, layout: str) -> tuple:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def array(self, dtype: np.dtype, size: int) -> np.ndarray:
        return np.frombuffer(self._take(size * dtype.itemsize), dtype)

    def _take(self, count: int) -> memoryview:
        if not 0 <= count <= len(self.data) - self.position:
            raise PthError(
                f"cut short: expected {count} bytes at {self.position} of {len(self.data)}"
            )
        self.position += count
        return self.data[self.position - count : self.position]


def _check_system(info: Any) -> None:
    """Of the writer's system, only the order of the bytes matters."""
    if not (isinstance(info, dict) and info.get("little_endian") is True):
        raise PthError("expected a file from a little-endian system")


# zip


def _read_zip(data: bytes) -> Any:
    members = _zip_members(data)
    pickles = [name for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(pickles) != 1:
        raise PthError(f"expected one member data.pkl in the zip file, found {len(pickles)}")
    prefix = pickles[0].removesuffix("data.pkl")
    order = members.get(prefix + "byteorder")
    if order is not None:
        _check_system({"little_endian": _stored(data, order) == b"little"})
    storages = Storages()
    value, _ = load(_stored(data, members[pickles[0]]), 0, vocabulary(storages.persistent))
    for key, storage in storages.items():
        if (name := f"{prefix}data/{key}") not in members:
            raise PthError(f"no member {quote(name)} in the zip file")
        numbers = _stored(data, members[name])
        if len(numbers) != storage.size * storage.dtype.itemsize:
            raise PthError(
                f"expected {storage.size} numbers of {storage.dtype.itemsize} bytes in "
                f"{quote(name)}, found {len(numbers)} bytes"
            )
        storage.numbers = np.frombuffer(numbers, storage.dtype)
    return value


def _zip_members(data: bytes) -> dict[str, zipfile.ZipInfo]:
    if data.count(b"PK\1\2") > _MAX_RECORDS:
        raise PthError(f"expected at most {_MAX_RECORDS} members in the zip file")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
    except _ZIP_ERRORS as error:
        raise PthError(f"damaged zip file: {error}") from error
    members = {info.filename: info for info in infos}
    if len(members) != len(infos):
        raise PthError("two members of the zip file have the same name")
    if sum(info.file_size for info in infos) > len(data):
        raise PthError("the members of the zip file are larger than the file: compressed?")
    return members


def _stored(data: bytes, info: zipfile.ZipInfo) -> memoryview:
    """The bytes of a member, which torch never compresses, checked against their CRC."""
    name, start = quote(info.filename), info.header_offset
    header = data[start : start + 30] if start >= 0 else b""
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise PthError(f"damaged zip file: no header of {name}")
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise PthError(f"expected {name} as torch stores it, found it compressed or encrypted")
    start += 30 + sum(struct.unpack("<HH", header[26:]))
    content = memoryview(data)[start : start + info.file_size]
    if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
        raise PthError(f"damaged zip file: the checksum of {name} does not fit")
    return content


# stream


def _read_stream(data: memoryview) -> Any:
    storages = Storages()
    cursor = _Cursor(data, storages.persistent)
    for what, expected in (("magic number", _STREAM_MAGIC), ("protocol", _STREAM_PROTOCOL)):
        found = cursor.pickle()
        if not (isinstance(found, int) and found == expected):
            raise PthError(f"expected the {what} {expected:#x} of torch's stream format")
    _check_system(cursor.pickle())
    value = cursor.pickle()
    keys = cursor.pickle()
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise PthError("expected a list of the keys of the storages")
    if sorted(keys) != sorted(storages):
        raise PthError("the storages in the file are not those that its tensors need")
    for storage in map(storages.__getitem__, keys):
        (size,) = cursor.numbers("<q")
        if size != storage.size:
            raise PthError(f"expected {storage.size} numbers in a storage, found {size}")
        storage.numbers = cursor.array(storage.dtype, size)
    return value


# tar


def _read_tar(data: memoryview) -> Any:
    members = _tar_members(data)
    for name in ("sys_info", "storages", "tensors", "pickle"):
        if name not in members:
            raise PthError(f"no member {name} in the tar file")
    _check_system(_Cursor(members["sys_info"], _refuse).pickle())
    tensors = _tar_tensors(members["tensors"], _tar_storages(members["storages"]))

    def persistent(pid: Any) -> Tensor:
        if type(pid) is not str or pid not in tensors:
            raise PthError("refused a persistent id that names no tensor")
        return tensors[pid]

    return _Cursor(members["pickle"], persistent).pickle()


def _tar_members(data: memoryview) -> dict[str, memoryview]:
    """The regular files of a tar archive.

    Written out since `tarfile` does much more with a hostile file than this needs: it follows
    links and parses PAX records without bound. PAX headers, in which torch's files keep fractions
    of a second, are skipped.
    """
    members: dict[str, memoryview] = {}
    position = 0
    for _ in range(_MAX_TAR_MEMBERS):
        header = bytes(data[position : position + _BLOCK])
        if header == bytes(_BLOCK):
            return members
        name, kind, size = _tar_header(header)
        position += _BLOCK
        content = data[position : position + size]
        if len(content) != size:
            raise PthError(f"cut short: expected {size} bytes of {quote(name)} in the tar file")
        if kind in b"0\0":
            if name in members:
                raise PthError(f"two members of the tar file have the name {quote(name)}")
            members[name] = content
        elif kind not in b"xg":
            raise PthError(
                f"expected regular files in the tar file, found {quote(name)} of type {kind!r}"
            )
        position += -(-size // _BLOCK) * _BLOCK
    raise PthError(f"expected at most {_MAX_TAR_MEMBERS} members in the tar file")


def _tar_header(header: bytes) -> tuple[str, bytes, int]:
    """Name, type and size of a member."""
    numbers = [field.strip(b" \0") for field in (header[124:136], header[148:156])]
    if not all(re.fullmatch(rb"[0-7]{1,11}", number) for number in numbers):
        raise PthError("damaged tar file: a header without size and checksum")
    size, checksum = (int(number, 8) for number in numbers)
    if len(header) != _BLOCK or checksum != sum(header[:148] + b" " * 8 + header[156:]):
        raise PthError("damaged tar file: the checksum of a header does not fit")
    name = header[:100].split(b"\0")[0].decode("ascii", "backslashreplace")
    return name.removeprefix("./"), header[156:157], size


def _tar_storages(data: memoryview) -> dict[int, Storage]:
    cursor = _Cursor(data, _refuse)
    storages: dict[int, Storage] = {}
    for _ in range(_count(cursor)):
        match cursor.pickle():
            case (int(key), _, np.dtype() as dtype) if 0 <= key < 2**64:
                (size,) = cursor.numbers("<q")
                storages[key] = Storage(dtype, size, cursor.array(dtype, size))
            case _:
                raise PthError("expected a key, a device and a type for each storage")
    views = cursor.pickle()
    if not isinstance(views, list) or views:
        raise PthError("views of storages are not supported")
    return storages


def _tar_tensors(data: memoryview, storages: dict[int, Storage]) -> dict[str, Tensor]:
    cursor = _Cursor(data, _refuse)
    tensors: dict[str, Tensor] = {}
    for _ in range(_count(cursor)):
        match cursor.pickle():
            case (int(key), int(root), np.dtype() as dtype) if root in storages:
                axes, _ = cursor.numbers("<ii")
                if not 0 <= axes <= MAX_AXES or dtype != storages[root].dtype:
                    raise PthError("a tensor's record does not fit its storage")
                shape, strides = (cursor.numbers(f"<{axes}q") for _ in range(2))
                (offset,) = cursor.numbers("<q")
                tensors[str(key)] = make_tensor(storages[root], offset, shape, strides)
            case _:
                raise PthError("expected a key, a storage and a type for each tensor")
    return tensors


def _count(cursor: _Cursor) -> int:
    count = cursor.pickle()
    if not (isinstance(count, int) and 0 <= count <= _MAX_RECORDS):
        raise PthError(f"expected at most {_MAX_RECORDS} storages and tensors")
    return count


def _refuse(_: Any) -> None:
    raise PthError("refused a persistent id outside the pickle of the state dict")
