"""Reader of IDX files, the format of MNIST and of the data sets that imitate it.

An IDX file is a header (two zero bytes, the type of the entries, the number of dimensions, then
each dimension as a big-endian uint32) followed by the entries in C order. Files may be plain or
gzipped; their content decides, not their name, since browsers unpack a `.gz` and keep its name.

A file is untrusted: nothing is allocated or inflated before the size that it declares has been
checked, and whatever is wrong is one `ValueError` that says what was expected and what was found.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np

__all__ = ["find_files", "read_array", "read_folder", "read_images", "read_labels", "read_split"]

# The largest file of the family's originals, 60,000 images of 28 × 28, holds 47 MB.
MAX_BYTES = 2**26

_UINT8 = 0x08
_GZIP = b"\x1f\x8b"
_PARTS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_array(path: str | Path, *, ndim: int, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """The array of unsigned bytes in one IDX file, plain or gzipped.

    Args:
      path: the file.
      ndim: number of dimensions that the file must declare, none of them 0.
      max_bytes: upper limit of the entries' bytes; a file that declares more is not read.

    Raises:
      ValueError: the file is not exactly one such array.
      OSError: the file cannot be opened.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "labels")
    >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
    >>> read_array(path, ndim=1)
    array([7, 8, 9], dtype=uint8)
    """
    path = Path(path)
    try:
        with _open(path) as file:
            shape = _read_shape(file, path, ndim)
            count = math.prod(shape)
            if count > max_bytes:
                raise ValueError(f"{path}: expected at most {max_bytes} bytes, found shape {shape}")
            # A byte more than declared shows a longer file, and takes gzip to its checksum.
            data = file.read(count + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: expected a whole gzip file, found: {error}") from error
    if len(data) != count:
        found = "more" if len(data) > count else f"{len(data)}"
        raise ValueError(f"{path}: expected {count} bytes for the shape {shape}, found {found}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_images(
    path: str | Path, *, shape: tuple[int, int] = (28, 28), max_bytes: int = MAX_BYTES
) -> np.ndarray:
    """Images of one IDX file: (n, *shape) uint8; raises as `read_array` does."""
    images = read_array(path, ndim=3, max_bytes=max_bytes)
    if images.shape[1:] != shape:
        raise ValueError(f"{path}: expected images of shape {shape}, found {images.shape[1:]}")
    return images


def read_labels(path: str | Path, *, num_classes: int = 10) -> np.ndarray:
    """Labels of one IDX file: (n,) int32 in 0..num_classes−1; raises as `read_array` does."""
    labels = read_array(path, ndim=1).astype(np.int32)
    index = int(labels.argmax())
    if labels[index] >= num_classes:
        raise ValueError(
            f"{path}: expected labels 0..{num_classes - 1}, found {labels[index]} at index {index}"
        )
    return labels


def read_split(
    images_path: str | Path, labels_path: str | Path, *, num_classes: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) uint8 and their labels (n,) int32 from a pair of IDX files."""
    images = read_images(images_path)
    labels = read_labels(labels_path, num_classes=num_classes)
    if len(images) != len(labels):
        raise ValueError(
            f"{labels_path}: expected {len(images)} labels, as many as {images_path} has images, "
            f"found {len(labels)}"
        )
    return images, labels


def read_folder(
    folder: str | Path, *, num_classes: int = 10
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"train": (images, labels), "test": (images, labels)} of a folder with the four files."""
    files = find_files(folder)
    return {split: read_split(*files[split], num_classes=num_classes) for split in files}


def find_files(folder: str | Path) -> dict[str, tuple[Path, Path]]:
    """Paths of the four official files: {"train": (images, labels), "test": (images, labels)}.

    Both spellings in circulation are known, `train-images-idx3-ubyte` and
    `train-images.idx3-ubyte`, each with or without `.gz`; of two copies the plain one is taken.

    Raises:
      FileNotFoundError: names every file that is missing, and the folder.
    """
    folder = Path(folder).expanduser()
    paths = {name: _find(folder, name) for names in _PARTS.values() for name in names}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        state = "has no" if folder.is_dir() else "is no folder; looked there for"
        raise FileNotFoundError(
            f"{folder} {state} {', '.join(missing)} (also looked for with .idx in place of -idx, "
            "and with .gz)"
        )
    found = {name: path for name, path in paths.items() if path is not None}
    return {split: (found[images], found[labels]) for split, (images, labels) in _PARTS.items()}


def _find(folder: Path, name: str) -> Path | None:
    spellings = (name, name.replace("-idx", ".idx"))
    candidates = [folder / (spelling + end) for end in ("", ".gz") for spelling in spellings]
    return next((path for path in candidates if path.is_file()), None)


def _open(path: Path) -> io.BufferedIOBase:
    with path.open("rb") as file:
        zipped = file.read(2) == _GZIP
    return gzip.open(path, "rb") if zipped else path.open("rb")


def _read_shape(file: io.BufferedIOBase, path: Path, ndim: int) -> tuple[int, ...]:
    """Checks the header and returns the dimensions that it declares."""
    header = file.read(4 + 4 * ndim)
    magic = bytes((0, 0, _UINT8, ndim))
    if header[:4] != magic:
        raise ValueError(
            f"{path}: expected the magic number {magic.hex()} of an IDX file of unsigned bytes "
            f"with {ndim} dimensions, found {header[:4].hex() or 'an empty file'}"
        )
    if len(header) < 4 + 4 * ndim:
        raise ValueError(f"{path}: expected {4 + 4 * ndim} bytes of header, found {len(header)}")
    shape = tuple(int(n) for n in np.frombuffer(header, ">u4", offset=4))
    if 0 in shape:
        raise ValueError(f"{path}: expected at least one entry in each dimension, found {shape}")
    return shape
