"""Makes the embedded subset of Fashion-MNIST, the file `images.npz` next to this one.

    python -m dh2l_jax.data.mini.make /usr/share/datasets/fashion-mnist

The argument is a folder with the four IDX files, such as the one that Debian's package
`dataset-fashion-mnist` installs, or that package itself (.deb), which is unpacked beside. 600
training and 200 test images of every class are drawn from the official training and test images.
Their indices in the original files are recorded, so the subset can be checked against its source.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from dh2l_jax.data.datasets import balanced_indices
from dh2l_jax.data.prepared.originals import idx

__all__ = ["main", "make_subset", "npz_bytes"]

SEED = 0
PER_CLASS = {"train": 600, "test": 200}
SOURCE = (
    "Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist, "
    "from Debian's package dataset-fashion-mnist 0.0~git20200523.55506a9-1"
)


def make_subset(folder: str | Path) -> dict[str, np.ndarray]:
    """Draws the subset from a folder of the four IDX files.

    Returns:
      For each split `<split>_images` (n, 28, 28) uint8, `<split>_labels` (n,) uint8 and
      `<split>_indices` (n,) int32, ascending, into the original files; also `seed` and `source`.
    """
    arrays = {"seed": np.array(SEED, np.int32), "source": np.array(SOURCE)}
    for split, (images, labels) in idx.read_folder(folder).items():
        index = balanced_indices(labels, PER_CLASS[split], SEED)
        arrays[f"{split}_images"] = images[index]
        arrays[f"{split}_labels"] = labels[index].astype(np.uint8)
        arrays[f"{split}_indices"] = index.astype(np.int32)
    return arrays


def npz_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """A compressed .npz file that is the same, byte for byte, whenever and wherever it is made.

    `np.savez` stamps its members with the time and the platform. (Deflate streams still differ
    between implementations of zlib; the arrays in them do not.)

    >>> data = npz_bytes({"x": np.arange(3)})
    >>> np.load(io.BytesIO(data))["x"]
    array([0, 1, 2])
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, arrays[name], version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0
            archive.writestr(info, member.getvalue(), compresslevel=9)
    return file.getvalue()


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Makes the embedded subset of Fashion-MNIST.")
    parser.add_argument("source", type=Path, help="folder of the IDX files, or the .deb")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images.npz")
    args = parser.parse_args(argv)
    try:
        data = npz_bytes(_subset_of(args.source))
        args.out.write_bytes(data)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")
    return 0


def _subset_of(source: Path) -> dict[str, np.ndarray]:
    if source.suffix != ".deb":
        return make_subset(source)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "--extract", str(source), folder], check=True)
        return make_subset(Path(folder, "usr/share/datasets/fashion-mnist"))


if __name__ == "__main__":
    sys.exit(main())
