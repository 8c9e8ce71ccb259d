"""Decoded once: the pixels and labels of a data set in a folder of checksummed files.

    <folder>/<name>-<key>/manifest.json                    written last, a SHA-256 of every file
                         /train.pixels, test.pixels        uint8, image after image
                         /train.index, test.index          int64 (n, 4): start, height, width, label

The key is made of the source's fingerprint and of the size asked for: another source or size is
another cache. The folder is filled under another name and renamed when it is whole; a damaged one
is made again. Pixels are memory-mapped: what is not used is not read.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import Progress

from dh2l_jax.data.store.images import Images, RaggedImages
from dh2l_jax.data.store.source import Examples, Source

__all__ = ["default_folder", "open_cached"]

Splits = dict[str, tuple[Images, np.ndarray]]

FORMAT = 1
MANIFEST = "manifest.json"


def default_folder() -> Path:
    """The user's cache folder; on Linux `$XDG_CACHE_HOME/dh2l_jax`, or `~/.cache/dh2l_jax`."""
    return user_cache_path("dh2l_jax", appauthor=False)


def open_cached(
    source: Source, folder: str | Path | None = None, *, resize: int = 0, progress: bool = False
) -> Splits:
    """The decoded splits of a source, from the cache if it is there and whole.

    Args:
      source: the data set.
      folder: where caches are kept; None for `default_folder()`.
      resize: shorter side in pixels, see `decode.decode`; 0 to keep the size.
      progress: show a bar on a terminal while images are decoded.

    Returns:
      {"train": (images, labels), "test": (images, labels)}; images (n, h, w, c) uint8 if those of
      a split all have one size, else `RaggedImages`; memory-mapped. Labels (n,) int32.

    Raises:
      ValueError: a split is empty, an image cannot be decoded, or a label is no leaf of the tree.
      OSError: the cache cannot be written, for example because the disk is full.
    """
    parent = default_folder() if folder is None else Path(folder).expanduser()
    key = _digest(f"{FORMAT} {source.fingerprint} {source.channels} {resize}".encode())[:16]
    path = parent / f"{re.sub(r'[^A-Za-z0-9._-]', '_', source.name)}-{key}"
    if path.exists():
        try:
            return _read(path, source)
        except (ValueError, OSError) as error:
            logging.getLogger(__name__).warning("%s: its images are decoded again", error)
            shutil.rmtree(path)
    parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=parent))
    try:
        _write(unfinished, source, resize, progress)
        _publish(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return _read(path, source)


def _publish(unfinished: Path, path: Path) -> None:
    """Gives a whole cache its name, unless another process was faster."""
    try:
        unfinished.rename(path)
    except OSError:
        if not path.is_dir():
            raise


def _write(path: Path, source: Source, resize: int, progress: bool) -> None:
    splits = {"train": source.train, "test": source.test}
    console = Console(stderr=True)
    files: dict[str, dict[str, Any]] = {}
    with Progress(console=console, disable=not (progress and console.is_terminal)) as bar:
        for split, examples in splits.items():
            task = bar.add_task(f"decoding {split} images", total=len(examples))
            index, name = [], f"{split}.pixels"
            with (path / name).open("wb") as file:
                sink, start = _Checksummed(file), 0
                for pixels, label in _decoded(examples, source, resize):
                    sink.write(pixels.tobytes())
                    height, width = pixels.shape[:2]
                    index.append((start, height, width, label))
                    start += height * width
                    bar.advance(task)
            files[name] = sink.entry()
            with (path / f"{split}.index").open("wb") as file:
                sink = _Checksummed(file)
                sink.write(np.array(index, "<i8").tobytes())
            files[f"{split}.index"] = sink.entry()
    manifest = {
        "format": FORMAT,
        "name": source.name,
        "fingerprint": source.fingerprint,
        "resize": resize,
        "channels": source.channels,
        "files": files,
    }
    (path / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


class _Checksummed:
    """A file that is hashed while it is written."""

    def __init__(self, file: BinaryIO):
        self._file, self._hash, self._size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)

    def entry(self) -> dict[str, Any]:
        return {"bytes": self._size, "sha256": self._hash.hexdigest()}


def _decoded(examples: Examples, source: Source, resize: int) -> Iterator[tuple[np.ndarray, int]]:
    """Pixels and label of every example, in order, decoded by several threads."""
    from dh2l_jax.data.store.decode import decode  # needs Pillow

    classes = source.hierarchy.num_classes

    def one(position: int) -> tuple[np.ndarray, int]:
        try:
            encoded, label = examples[position]
            if not 0 <= label < classes:
                raise ValueError(f"expected a label in 0..{classes - 1}, found {label}")
            return decode(encoded, channels=source.channels, resize=resize), label
        except ValueError as error:
            raise ValueError(f"{examples.describe(position)}: {error}") from error

    if not len(examples):
        raise ValueError(f"{source.name}: a split holds no images")
    threads = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        waiting: deque[concurrent.futures.Future] = deque()
        try:
            for position in range(len(examples)):
                waiting.append(pool.submit(one, position))
                if len(waiting) > 4 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read(path: Path, source: Source) -> Splits:
    """Opens a cache whose files are all as the manifest says.

    Raises:
      ValueError: one is not.
      OSError: one is missing.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): dict(entry) for name, entry in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path / MANIFEST} is damaged") from error
    splits: Splits = {}
    for split in ("train", "test"):
        names = f"{split}.pixels", f"{split}.index"
        for name in names:
            _check(path / name, files.get(name, {}))
        index = np.fromfile(path / names[1], "<i8").reshape(-1, 4)
        pixels = np.memmap(path / names[0], np.uint8, "r").reshape(-1, source.channels)
        _check_index(path / names[1], index, len(pixels))
        splits[split] = _images(pixels, index), index[:, 3].astype(np.int32)
    return splits


def _check(path: Path, entry: dict[str, Any]) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != entry.get("sha256"):
        raise ValueError(f"{path} is damaged: its SHA-256 is not that of the manifest")


def _check_index(path: Path, index: np.ndarray, count: int) -> None:
    """Refuses an index by which an image is empty or lies outside of the pixels."""
    start, height, width, _ = index.T
    inside = (start >= 0) & (start <= count) & (height >= 1) & (width >= 1)
    # The sizes came from a file: their product could overflow, a quotient cannot.
    inside &= width <= (count - start) // np.maximum(height, 1)
    if not len(index) or not inside.all():
        raise ValueError(f"{path} is damaged: an image is empty or lies outside of the pixels")


def _images(pixels: np.ndarray, index: np.ndarray) -> Images:
    """One array if all images have one size and follow each other."""
    start, (height, width) = index[:, 0], index[0, 1:3]
    same = np.all(index[:, 1:3] == (height, width))
    if same and np.array_equal(start, np.arange(len(index)) * (height * width)):
        count, channels = len(index), pixels.shape[1]
        return pixels[: count * height * width].reshape(count, height, width, channels)
    return RaggedImages(pixels, start, index[:, 1:3])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
