"""Fashion-MNIST as a TFDS builder that needs no TensorFlow.

Name, version, features, keys and therefore the order of the examples are the stock builder's.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from tensorflow_datasets.core import registered
from tensorflow_datasets.image_classification import mnist

from dh2l_jax.data.prepared.originals import idx
from dh2l_jax.data.prepared.originals.files import url_infos as infos_of
from dh2l_jax.data.prepared.originals.images import encode_png

__all__ = ["FashionMNIST"]

_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}

with registered.skip_registration():

    class FashionMNIST(mnist.FashionMNIST):
        """Fashion-MNIST without TensorFlow."""

        url_infos = infos_of("fashion_mnist")

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
            urls = {split: [self.URL + name for name in names] for split, names in _FILES.items()}
            paths = dl_manager.download(urls)
            # Both splits are read before an example is written.
            splits = {split: idx.read_split(*files) for split, files in paths.items()}
            return {split: self._generate_examples(*arrays) for split, arrays in splits.items()}

        def _generate_examples(self, images: Any, labels: Any) -> Iterator[tuple[int, dict]]:
            for index, (pixels, label) in enumerate(zip(images, labels.tolist(), strict=True)):
                png = encode_png(pixels)
                yield index, {"image": io.BytesIO(png), "label": label}
