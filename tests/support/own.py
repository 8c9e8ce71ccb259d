"""Parts of a user's own: networks and data sets, as package.module:function names them."""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dh2l_jax.data.datasets import Dataset
from dh2l_jax.hierarchy import Hierarchy

TREE = Hierarchy.two_level([0, 0, 1])


class Net(nn.Module):
    """A dense layer and a dropout, with a norm or without."""

    head: nn.Module
    norm: bool = True
    rate: float = 0.5
    sizes: tuple = ()

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8, name="dense")(x.reshape(x.shape[0], -1))
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        return self.head(nn.Dropout(self.rate, deterministic=not train)(nn.relu(x)))


def normed(head):
    return Net(head)


def plain(head):
    return Net(head, norm=False)


class Headless(nn.Module):
    head: nn.Module

    @nn.compact
    def __call__(self, x, train):
        return jnp.zeros((x.shape[0], 3))


class Twice(nn.Module):
    head: nn.Module

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8)(x.reshape(x.shape[0], -1))
        return self.head(x) + self.head(x)


class Halved(nn.Module):
    head: nn.Module

    @nn.compact
    def __call__(self, x, train):
        return self.head(nn.Dense(8)(x.reshape(x.shape[0], -1)))[:, :2]


class Counting(nn.Module):
    head: nn.Module

    @nn.compact
    def __call__(self, x, train):
        self.variable("counts", "calls", jnp.zeros, ())
        return self.head(nn.Dense(8)(x.reshape(x.shape[0], -1)))


def none(head):
    return None


def other_head(head):
    return Net(nn.Dense(3))


def unhashable(head):
    return Net(head, sizes=np.ones(2))


def images(seed=0, split=15):
    """Made-up images (n, 8, 8, 1) and labels 0, 1, 2, 0, …."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (split, 8, 8, 1)).astype(np.uint8), np.arange(split) % 3


def arrays():
    return *images(0), *images(1, 6), TREE


def floats():
    (x, y), (a, b) = images(0), images(1, 6)
    return x / 255, y, a[..., 0].astype(np.float32) / 255, b


def dataset():
    return Dataset.from_splits("mine", images(0), images(1, 6), TREE)


def of_folder(folder):
    with np.load(folder / "x.npz") as file:
        return file["x"], file["y"], file["x"], file["y"]


def fails():
    raise RuntimeError("no such\nshelf")


def normalised():
    x, y = images()
    return x - 128.0, y, x, y


def three():
    return 1, 2, 3


def with_names():
    return *arrays()[:4], ["a", "b", "c"]


def without_tree_of_floats():
    x, y = images()
    return x, y / 1, x, y


class Recorder:
    """A logger that remembers."""

    seen: ClassVar[list] = []

    def __init__(self, workdir, config, records):
        self.seen.append(("began", workdir, config, records))

    def log(self, record):
        self.seen.append(record)

    def close(self):
        self.seen.append("closed")


def broken_at_once(workdir, config, records):
    raise OSError("no\nserver")


class BrokenLater(Recorder):
    """A logger that fails at its first record."""

    seen: ClassVar[list] = []

    def log(self, record):
        raise OSError("the line is cut")


class Slow:
    """A logger that hangs until it is told to go on."""

    go_on, done = None, 0

    def __init__(self, workdir, config, records):
        type(self).done = 0

    def log(self, record):
        self.go_on.wait()
        type(self).done += 1

    def close(self):
        pass
