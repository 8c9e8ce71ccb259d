"""Small data sets in the four IDX files of MNIST."""

import struct

import numpy as np

NAMES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def encode(array, *, kind=8, ndim=None, shape=None):
    """The IDX bytes of an array; options override what the header declares."""
    shape = array.shape if shape is None else shape
    ndim = len(shape) if ndim is None else ndim
    header = bytes((0, 0, kind, ndim)) + struct.pack(f">{len(shape)}I", *shape)
    return header + array.astype(np.uint8).tobytes()


def some_images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 28, 28), dtype=np.uint8)


def write_folder(folder, *, train=20, test=10, rename=lambda name: name, pack=lambda data: data):
    """A small data set in four files; returns what they hold."""
    arrays = {
        "train_images": some_images(train, 1),
        "train_labels": np.arange(train) % 10,
        "test_images": some_images(test, 2),
        "test_labels": np.arange(test) % 10,
    }
    for key, array in arrays.items():
        (folder / rename(NAMES[key])).write_bytes(pack(encode(array)))
    return arrays
