"""What the readers of data sets hand to the cache: encoded images, labels and the class tree.

A reader (TFDS builders, folders of images) makes a `Source`; `cache` decodes it once. Nothing is
read before an example is asked for.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from dh2l_jax.hierarchy import Hierarchy

__all__ = ["Examples", "Source"]


class Examples(Protocol):
    """The examples of one split, in a fixed order; may be read from several threads."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int, /) -> tuple[bytes, int]:
        """The image as it is encoded, see `decode.FORMATS`, and its label, a node of the tree."""
        ...

    def describe(self, index: int) -> str:
        """What a message calls the example: the path of its file, or its id."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A data set before its images are decoded.

    Attributes:
      name: what results report.
      fingerprint: a text that changes when an image, a label or the tree does, cheap to compute
        (sizes and times of files, not their content); the cache compares it.
      channels: 3 for colour, 1 for grey; the cache converts every image to it.
    """

    name: str
    fingerprint: str
    hierarchy: Hierarchy
    train: Examples
    test: Examples
    channels: int = 3
