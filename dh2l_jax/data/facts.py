"""The data sets known by name, a row each: what all other tables of data sets are made from.

A new one is a row here and, where TFDS prepares it, the builder that the row names.
"""

from __future__ import annotations

import dataclasses

__all__ = ["FACTS", "DatasetFacts"]


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """What is known of a data set before a file of it is read.

    Attributes:
      title: as the paper writes it.
      classes: number of classes.
      train: number of training images.
      smallest: training images of the smallest class.
      tree: its taxonomy, see `hierarchy.published`; empty where it has none.
      builder: "module.Class" in `data/prepared` that prepares it; empty where nothing has to be.
      tfds_name: where TFDS calls it otherwise.
      photographs: of many sizes; else small images of one size.
    """

    title: str
    classes: int
    train: int
    smallest: int
    tree: str = ""
    builder: str = ""
    tfds_name: str = ""
    photographs: bool = False


FACTS = {
    "fashion_mnist_mini": DatasetFacts(
        "Fashion-MNIST (6,000 + 2,000 images)", 10, 6_000, 600, tree="fashion_mnist"
    ),
    "fashion_mnist": DatasetFacts(
        "Fashion-MNIST", 10, 60_000, 6_000, tree="fashion_mnist", builder="mnist.FashionMNIST"
    ),
    "cifar10": DatasetFacts("CIFAR-10", 10, 50_000, 5_000, builder="cifar.Cifar10"),
    "cifar100": DatasetFacts(
        "CIFAR-100", 100, 50_000, 500, tree="cifar100", builder="cifar.Cifar100"
    ),
    "cub200": DatasetFacts(
        "CUB-200-2011",
        200,
        5_994,
        29,
        tree="cub200",
        builder="cub.CaltechBirds2011",
        tfds_name="caltech_birds2011",
        photographs=True,
    ),
    "cars196": DatasetFacts(
        "Cars196", 196, 8_144, 24, tree="cars196", builder="cars.Cars196", photographs=True
    ),
}
