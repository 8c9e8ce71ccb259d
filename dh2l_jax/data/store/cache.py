"""Decoded once: the pixels and labels of a data set in a folder of checksummed files.

    <folder>/<name>-<key>/manifest.json                  written last, a SHA-256 of all, itself too
                         /train.pixels, test.pixels      uint8, image after image
                         /train.index, test.index        int64 (n, 5): start, height, width, label,
                                                         digest of the pixels

The key is made of the source's fingerprint and of what is asked for: another source, size or
background is another cache. The folder is filled under another name, beside a lock, and renamed
when it is whole; one whose process has died goes when a cache is next opened, and a damaged one is
made again. Pixels are memory-mapped: what is not used is not read. No link is followed.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import logging
import os
import re
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from platformdirs import user_cache_path
from rich.console import Console

from dh2l_jax.bars import Bar
from dh2l_jax.checks import one_line
from dh2l_jax.data.store.filling import filled, remove, remove_unfinished
from dh2l_jax.data.store.images import Images, RaggedImages, digest
from dh2l_jax.data.store.source import Examples, Source
from dh2l_jax.files import name_in_errors, open_plain

__all__ = ["CachedSplit", "Splits", "default_folder", "open_cached"]

FORMAT = 2
MANIFEST = "manifest.json"
NAMED = 3  # images left out that the warning names; the manifest names all
_SPLITS = ("train", "test")


class CachedSplit(NamedTuple):
    """One split of a data set, decoded."""

    images: Images
    """(n, h, w, c) uint8 if all have one size, else `RaggedImages`; memory-mapped."""
    labels: np.ndarray
    """(n,) int32."""
    digests: np.ndarray
    """(n,) uint64, see `images.digests`."""
    first_new: str
    """The first image of which version 1 of `decode` made other pixels; empty if there is none."""
    left_out: frozenset[str]
    """Names of the examples of the source that could not be decoded, and are not among these."""


Splits = dict[str, CachedSplit]


class _LeftOut(NamedTuple):
    """An image that cannot be decoded."""

    name: str
    reason: str
    label: int


class _Image(NamedTuple):
    pixels: np.ndarray
    label: int
    digest: int
    new: str  # its name, if version 1 of `decode` made other pixels


class _DamagedError(ValueError):
    """A cache that must be made again."""


def default_folder() -> Path:
    """The user's cache folder; on Linux `$XDG_CACHE_HOME/dh2l_jax`, or `~/.cache/dh2l_jax`."""
    return user_cache_path("dh2l_jax", appauthor=False)


def open_cached(
    source: Source,
    folder: str | Path | None = None,
    *,
    resize: int = 0,
    background: str = "white",
    on_bad_image: str = "refuse",
    progress: bool = False,
) -> Splits:
    """The decoded splits of a source, from the cache if it is there and whole.

    Args:
      source: the data set.
      folder: where caches are kept; None for `default_folder()`.
      resize: shorter side in pixels, see `decode.decode`; 0 to keep the size.
      background: behind transparent pixels, see `decode.decode`.
      on_bad_image: "refuse", or "skip" to leave out what cannot be decoded; a warning names it.
      progress: show a bar on a terminal while images are decoded.

    Returns:
      {"train": split, "test": split}.

    Raises:
      ValueError: a split is empty, an image cannot be decoded, a class is left without training
        images.
      OSError: an image cannot be read, or the cache not be written, for example because the disk is
        full; the line names the path.
    """
    from dh2l_jax.data.store.decode import VERSION, check_background  # needs Pillow

    colour = check_background(background)
    parent = default_folder() if folder is None else Path(folder).expanduser()
    asked = f"{FORMAT} {VERSION} {source.fingerprint} {source.channels} {resize} {colour}"
    key = hashlib.sha256(asked.encode()).hexdigest()[:16]
    path = parent / f"{re.sub(r'[^A-Za-z0-9._-]', '_', source.name)}-{key}"
    with name_in_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(parent)
    if os.path.lexists(path):
        try:
            return _read(path, source, on_bad_image)
        except _DamagedError as error:
            logging.getLogger(__name__).warning("%s: its images are decoded again", one_line(error))
            remove(path)
    with filled(path) as unfinished:
        _write(unfinished, source, resize, background, on_bad_image, progress)
    return _read(path, source, on_bad_image)


# How it is filled.


def _write(
    path: Path, source: Source, resize: int, background: str, on_bad_image: str, progress: bool
) -> None:
    console = Console(stderr=True)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "name": source.name,
        "fingerprint": source.fingerprint,
        "resize": resize,
        "background": background,
        "channels": source.channels,
        "splits": {},
        "files": {},
    }
    with Bar(*Bar.get_default_columns(), console=console, hidden=not progress) as bar:
        for split, examples in (("train", source.train), ("test", source.test)):
            task = bar.add_task(f"decoding {split} images", total=len(examples))
            index, left_out, first_new, start = [], [], "", 0
            with _Checksummed(path / f"{split}.pixels", manifest["files"]) as pixels:
                for image in _decoded(examples, source, resize, background):
                    bar.advance(task)
                    if isinstance(image, _LeftOut):
                        left_out.append(image)
                        if on_bad_image == "refuse":
                            _tell(path, left_out, on_bad_image)
                        continue
                    pixels.write(image.pixels.tobytes())
                    height, width = image.pixels.shape[:2]
                    index.append((start, height, width, image.label, image.digest))
                    start += height * width
                    first_new = first_new or image.new
            _refuse_lost_classes(source, split, index, left_out)
            with _Checksummed(path / f"{split}.index", manifest["files"]) as file:
                file.write(np.array(index, "<i8").tobytes())
            manifest["splits"][split] = {
                "left_out": [image[:2] for image in left_out],
                "first_new": first_new,
            }
    manifest["sha256"] = _own_digest(manifest)
    with _Checksummed(path / MANIFEST, {}) as file:
        file.write(json.dumps(manifest, indent=1).encode())


def _refuse_lost_classes(
    source: Source, split: str, index: list[tuple[int, ...]], left_out: list[_LeftOut]
) -> None:
    """Every class needs an image to learn from; the test needs one at all, inner nodes none."""
    names, kept = source.hierarchy.names(source.hierarchy.num_levels), {row[3] for row in index}
    for image in left_out:
        is_class = image.label < len(names)
        if not kept or (split == "train" and is_class and image.label not in kept):
            whose = f"class {names[image.label]!r}" if kept else f"{source.name}, {split},"
            raise ValueError(f"{whose} has no image that can be read: {image.name}: {image.reason}")


def _tell(path: Path, left_out: list[_LeftOut], on_bad_image: str) -> None:
    """Refuses images that cannot be decoded, or names some that are left out."""
    if not left_out:
        return
    name, reason, *_ = left_out[0]
    if on_bad_image == "refuse":
        raise ValueError(f"{name}: {reason}; data.on_bad_image=skip leaves such images out")
    more = f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
    logging.getLogger(__name__).warning(
        "on_bad_image=skip leaves out images that cannot be read, %d: %s%s; %s has the reasons",
        len(left_out),
        ", ".join(image[0] for image in left_out[:NAMED]),
        more,
        one_line(path / MANIFEST),
    )


class _Checksummed:
    """A new file that is hashed while it is written, and entered in a table at its end."""

    def __init__(self, path: Path, entries: dict[str, Any]):
        self._path, self._entries = path, entries
        self._hash, self._size = hashlib.sha256(), 0

    def __enter__(self) -> _Checksummed:
        with name_in_errors(self._path):
            self._file = self._path.open("xb")
        return self

    def __exit__(self, *exception: object) -> None:
        with name_in_errors(self._path):
            self._file.close()
        self._entries[self._path.name] = {"bytes": self._size, "sha256": self._hash.hexdigest()}

    def write(self, data: bytes) -> None:
        with name_in_errors(self._path):
            self._file.write(data)
        self._hash.update(data)
        self._size += len(data)


def _decoded(
    examples: Examples, source: Source, resize: int, background: str
) -> Iterator[_Image | _LeftOut]:
    """Every example, in order, decoded by several threads."""
    from dh2l_jax.data.store.decode import decode_traced  # needs Pillow

    nodes = source.hierarchy.num_nodes - 1  # all but the root

    def one(position: int) -> _Image | _LeftOut:
        try:
            encoded, label = examples[position]
            if not 0 <= label < nodes:
                raise ValueError(f"expected a label in 0..{nodes - 1}, found {label}")
        except ValueError as error:
            raise ValueError(f"{examples.describe(position)}: {error}") from error
        try:
            found = decode_traced(
                encoded, channels=source.channels, resize=resize, background=background
            )
        except ValueError as error:
            return _LeftOut(examples.describe(position), str(error), label)
        new = examples.describe(position) if found.is_new else ""
        number = int.from_bytes(digest(found.pixels), "little", signed=True)
        return _Image(found.pixels, label, number, new)

    if not len(examples):
        raise ValueError(f"{source.name}: a split holds no images")
    threads = os.cpu_count() or 1
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")  # Pillow's, about oddities that do no harm
        waiting: deque[concurrent.futures.Future[_Image | _LeftOut]] = deque()
        try:
            for position in range(len(examples)):
                waiting.append(pool.submit(one, position))
                if len(waiting) > 4 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


# How it is read.


def _read(path: Path, source: Source, on_bad_image: str = "refuse") -> Splits:
    """Opens a cache whose files are all as the manifest says.

    Raises:
      ValueError: one is not, is missing or is a link (`_DamagedError`); or images are left out that
        must not be.
    """
    if path.is_symlink():
        raise _DamagedError(f"{path} is a link")
    try:
        with open_plain(path / MANIFEST) as file:
            manifest = json.load(file)
        if manifest.pop("sha256") != _own_digest(manifest):
            raise _DamagedError(f"{path / MANIFEST} is damaged: its SHA-256 is another")
        splits = {split: _read_split(path, split, source, manifest) for split in _SPLITS}
        left_out = [
            _LeftOut(str(name), str(reason), -1)
            for split in _SPLITS
            for name, reason in manifest["splits"][split]["left_out"]
        ]
    except _DamagedError:
        raise
    except OSError as error:
        raise _DamagedError(f"{error.filename or path} is damaged: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _DamagedError(f"{path / MANIFEST} is damaged") from error
    _tell(path, left_out, on_bad_image)
    return splits


def _read_split(path: Path, split: str, source: Source, manifest: dict[str, Any]) -> CachedSplit:
    names = f"{split}.pixels", f"{split}.index"
    with open_plain(path / names[0]) as file, open_plain(path / names[1]) as table:
        for name, opened in zip(names, (file, table), strict=True):
            if (
                hashlib.file_digest(opened, "sha256").hexdigest()
                != manifest["files"][name]["sha256"]
            ):
                raise _DamagedError(f"{path / name} is damaged: its SHA-256 is not the manifest's")
        table.seek(0)
        index = np.frombuffer(table.read(), "<i8").reshape(-1, 5)
        pixels = np.memmap(file, np.uint8, "r").reshape(-1, source.channels)
    _check_index(path / names[1], index, len(pixels))
    return CachedSplit(
        _images(pixels, index),
        index[:, 3].astype(np.int32),
        index[:, 4].astype(np.uint64),
        str(manifest["splits"][split]["first_new"]),
        frozenset(str(name) for name, _ in manifest["splits"][split]["left_out"]),
    )


def _own_digest(manifest: dict[str, Any]) -> str:
    """Of what the manifest says, however it is written."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _check_index(path: Path, index: np.ndarray, count: int) -> None:
    """Refuses an index by which an image is empty or lies outside of the pixels."""
    start, height, width = index[:, :3].T
    inside = (start >= 0) & (start <= count) & (height >= 1) & (width >= 1)
    # The sizes came from a file: their product could overflow, a quotient cannot.
    inside &= width <= (count - start) // np.maximum(height, 1)
    if not len(index) or not inside.all():
        raise _DamagedError(f"{path} is damaged: an image is empty or lies outside of the pixels")


def _images(pixels: np.ndarray, index: np.ndarray) -> Images:
    """One array if all images have one size and follow each other."""
    start, (height, width) = index[:, 0], index[0, 1:3]
    same = np.all(index[:, 1:3] == (height, width))
    if same and np.array_equal(start, np.arange(len(index)) * (height * width)):
        count, channels = len(index), pixels.shape[1]
        return pixels[: count * height * width].reshape(count, height, width, channels)
    return RaggedImages(pixels, start, index[:, 1:3])
