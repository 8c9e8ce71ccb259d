"""TFDS's writing of examples, without TensorFlow and in little memory.

TFDS sorts the examples of a split by a hash of their keys, in memory up to 1 GB and beyond that in
files, which it opens with TensorFlow. Cars196 comes close to that limit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorflow_datasets.core import shuffle
from tensorflow_datasets.core.utils import tqdm_utils

__all__ = ["tfds_without_tensorflow"]

MAX_IN_MEMORY = 2**28


class _Bucket:
    """What TFDS's shuffler needs of a bucket: pairs (hash, example) in one file."""

    def __init__(self, path: Any) -> None:
        self._path = Path(path)
        self._length = 0
        self.size = 0

    def __len__(self) -> int:
        return self._length

    def add(self, key: int, data: bytes) -> None:
        # The file is opened each time: there are 1,000 buckets, and systems that allow 256.
        with self._path.open("ab") as file:
            file.write(key.to_bytes(16, "big") + len(data).to_bytes(8, "big") + data)
        self._length += 1
        self.size += len(data)

    def read_values(self) -> Iterator[tuple[int, bytes]]:
        if not self._length:
            return
        with self._path.open("rb") as file:
            while head := file.read(24):
                yield int.from_bytes(head[:16], "big"), file.read(int.from_bytes(head[16:], "big"))

    def del_file(self) -> None:
        self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def tfds_without_tensorflow(*, progress: bool) -> Iterator[None]:
    """Within it, TFDS sorts examples without TensorFlow; with or without progress bars."""
    settings = [
        (shuffle, "_Bucket", _Bucket),
        (shuffle, "MAX_MEM_BUFFER_SIZE", MAX_IN_MEMORY),
        (tqdm_utils, "_active", progress),
    ]
    before = [getattr(module, name) for module, name, _ in settings]
    try:
        for module, name, value in settings:
            setattr(module, name, value)
        yield
    finally:
        for (module, name, _), value in zip(settings, before, strict=True):
            setattr(module, name, value)
