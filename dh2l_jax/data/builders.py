"""The data sets that are prepared through TFDS: our names and the builders behind them."""

from __future__ import annotations

from tensorflow_datasets.core import GeneratorBasedBuilder

from dh2l_jax.data.builders_cars import Cars196
from dh2l_jax.data.builders_cifar import Cifar10, Cifar100
from dh2l_jax.data.builders_cub import CaltechBirds2011
from dh2l_jax.data.builders_mnist import FashionMNIST

__all__ = ["BUILDERS"]

# Our name → a builder that needs no TensorFlow. Its class attribute `url_infos` holds exactly the
# files that it reads; its name, version and features are those of the stock builder.
BUILDERS: dict[str, type[GeneratorBasedBuilder]] = {
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "cub200": CaltechBirds2011,
    "cars196": Cars196,
    "fashion_mnist": FashionMNIST,
}
