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
from collections.abc import Iterator
from typing import Any

import numpy as np

from dh2l_jax.models.weights.pickles import (
    MAX_AXES,
    MAX_SIZE,
    Cursor,
    PthError,
    Storage,
    Tensor,
    quote,
)

__all__ = ["read_container"]

_STREAM = [0x1950A86A20F9469CFC6C, 1001]  # magic number and protocol
_MAX_RECORDS = 2**16  # members of a zip file; storages or tensors of a tar file
_MAX_TAR_MEMBERS = 64
_BLOCK = 512


def read_container(data: bytes) -> Any:
    """The pickled value of a file, whose first bytes tell the container."""
    if data[:4] == b"PK\3\4":
        return _read_zip(data)
    if data[257:262] == b"ustar":
        return _read_tar(memoryview(data))
    if data[:1] == b"\x80":
        return _read_stream(memoryview(data))
    raise PthError(f"expected a zip, stream or tar file of torch.save, found {data[:12]!r}")


class _Storages(dict[str, Storage]):
    """The storages that a pickle names, by their keys; their numbers come after the pickle."""

    def persistent(self, pid: Any) -> Storage:
        """The storage of ("storage", dtype, key, device, size[, view])."""
        if type(pid) is tuple and len(pid) == 6:
            *pid, view = pid
            if view is not None:
                raise PthError("views of storages are not supported")
        match pid:
            case ("storage", np.dtype() as dtype, str(key), _, int(size)) if 0 <= size <= MAX_SIZE:
                storage = self.setdefault(key, Storage(dtype, size))
                if (storage.dtype, storage.size) == (dtype, size):
                    return storage
                raise PthError(f"storage {quote(key)} is declared twice, differently")
        raise PthError("refused a persistent id that names no storage")


def _check_system(info: Any) -> None:
    if not (isinstance(info, dict) and info.get("little_endian") is True):
        raise PthError("expected a file from a little-endian system")


def _read_zip(data: bytes) -> Any:
    members = _zip_members(data)
    names = [name for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(names) != 1:
        raise PthError(f"expected one member data.pkl in the zip file, found {len(names)}")
    prefix = names[0].removesuffix("data.pkl")
    if order := members.get(prefix + "byteorder"):
        _check_system({"little_endian": _stored(data, order) == b"little"})
    storages = _Storages()
    value = Cursor(_stored(data, members[names[0]]), storages.persistent).pickle()
    for key, storage in storages.items():
        if (name := f"{prefix}data/{key}") not in members:
            raise PthError(f"no member {quote(name)} in the zip file")
        content = _stored(data, members[name])
        if len(content) != storage.size * storage.dtype.itemsize:
            raise PthError(f"{len(content)} bytes in {quote(name)} for {storage.size} numbers")
        storage.numbers = np.frombuffer(content, storage.dtype)
    return value


def _zip_members(data: bytes) -> dict[str, zipfile.ZipInfo]:
    if data.count(b"PK\1\2") > _MAX_RECORDS:
        raise PthError(f"expected at most {_MAX_RECORDS} members in the zip file")
    try:
        infos = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except Exception as error:  # its type depends on which bytes of the directory are damaged
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


def _read_stream(data: memoryview) -> Any:
    storages = _Storages()
    cursor = Cursor(data, storages.persistent)
    if [cursor.pickle(), cursor.pickle()] != _STREAM:
        raise PthError("expected the magic number and the protocol 1001 of torch's stream format")
    _check_system(cursor.pickle())
    value, keys = cursor.pickle(), cursor.pickle()
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


def _read_tar(data: memoryview) -> Any:
    members = _tar_members(data)
    for name in ("sys_info", "storages", "tensors", "pickle"):
        if name not in members:
            raise PthError(f"no member {name} in the tar file")
    _check_system(Cursor(members["sys_info"], _refuse).pickle())
    storages, tensors = {}, {}
    cursor = Cursor(members["storages"], _refuse)
    for key, _, dtype in _tar_records(cursor):
        (size,) = cursor.numbers("<q")
        storages[key] = Storage(dtype, size, cursor.array(dtype, size))
    if cursor.pickle() != []:
        raise PthError("views of storages are not supported")
    cursor = Cursor(members["tensors"], _refuse)
    for key, root, dtype in _tar_records(cursor):
        axes, _ = cursor.numbers("<ii")
        if not (root in storages and storages[root].dtype == dtype and 0 <= axes <= MAX_AXES):
            raise PthError("a tensor's record does not fit its storage")
        shape, strides, (offset,) = (cursor.numbers(f"<{n}q") for n in (axes, axes, 1))
        tensors[str(key)] = Tensor(storages[root], offset, shape, strides)

    def persistent(pid: Any) -> Tensor:
        if type(pid) is not str or pid not in tensors:
            raise PthError("refused a persistent id that names no tensor")
        return tensors[pid]

    return Cursor(members["pickle"], persistent).pickle()


def _tar_records(cursor: Cursor) -> Iterator[tuple[int, Any, np.dtype]]:
    """Key, device or storage, and type of each record; its numbers, behind them, are read first."""
    count = cursor.pickle()
    if not (isinstance(count, int) and 0 <= count <= _MAX_RECORDS):
        raise PthError(f"expected at most {_MAX_RECORDS} storages and tensors")
    for _ in range(count):
        match cursor.pickle():
            case (int(key), str() | int() as other, np.dtype() as dtype) if 0 <= key < 2**64:
                yield key, other, dtype
            case _:
                raise PthError("expected a key, a device or storage, and a type in a record")


def _refuse(_: Any) -> None:
    raise PthError("refused a persistent id outside the pickle of the state dict")


def _tar_members(data: memoryview) -> dict[str, memoryview]:
    """The regular files of a tar archive.

    `tarfile` would follow links, and parse PAX headers without bound, in which torch's files keep
    fractions of a second; here links are refused and those headers skipped.
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
        if kind not in b"0\0xg":
            raise PthError(f"expected files in the tar file, found {quote(name)} of type {kind!r}")
        if kind in b"0\0" and members.setdefault(name, content) is not content:
            raise PthError(f"two members of the tar file have the name {quote(name)}")
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
