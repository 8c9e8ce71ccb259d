"""What a run knows of itself: all that is needed to use it where its images are not.

  facts = read_facts(workdir)       # classes, tree, mean, std, sizes, decoding, temperature, result
  outputs = facts.outputs()         # logits and labels of the images that it was evaluated on

Classes, tree and normalisation lie in the checkpoints (`data.npz`), options in config.json, scores
in result.json; what is kept of the images themselves is in outputs.npz, written beside the result.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dh2l_jax.data.store.fingerprint import DataRecord
from dh2l_jax.files import read_plain
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.training.config import Config
from dh2l_jax.training.run import evidence
from dh2l_jax.training.run.folder import (
    OUTPUTS,
    RESULT,
    TEST,
    is_finished,
    outputs_name,
    read_config,
    read_result,
)
from dh2l_jax.training.run.records import read_sealed, refuse_damaged

__all__ = ["Outputs", "RunFacts", "crop_size", "gravest", "read_facts"]

FORMAT = 1
WORST = 24  # mistakes of which a run keeps a picture


@dataclasses.dataclass(frozen=True, eq=False)
class Outputs:
    """What a state of a run says of each image of a split.

    Attributes:
      logits: (n, C) float32, without the temperature.
      labels: (n,) int32.
      worst: (k,) int32, the images of the gravest mistakes, see `gravest`.
      names: k paths of their files, or their numbers in the data set where they have none.
      thumbnails: (k, h, w, c) uint8, what the network sees of them, made smaller.
    """

    logits: np.ndarray
    labels: np.ndarray
    worst: np.ndarray
    names: list[str]
    thumbnails: np.ndarray

    def pack(self) -> bytes:
        """An npz file without pickles; `unpack` is the inverse."""
        file, facts = io.BytesIO(), {"format": FORMAT, "names": self.names}
        arrays = dataclasses.asdict(self) | {"names": None}
        text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        np.savez(file, facts=text, **{name: a for name, a in arrays.items() if a is not None})
        return file.getvalue()

    @classmethod
    def unpack(cls, content: bytes) -> Outputs:
        """What was packed.

        Raises:
          ValueError: it is something else.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays = dict(file)
            facts = json.loads(arrays.pop("facts").tobytes())
            if facts["format"] != FORMAT:
                raise ValueError(f"expected format {FORMAT}, found {facts['format']!r}")
            return cls(names=facts["names"], **arrays)
        except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"no outputs of a run: {error}") from error


@dataclasses.dataclass(frozen=True, eq=False)
class RunFacts:
    """What is known of a run, finished or not, from its folder alone.

    Attributes:
      workdir: the folder.
      config: its options; how an image is decoded and cut is `config.data`: resize, background.
      data: what its checkpoints hold of its data: tree, labels and digests, shape, mean and std.
      result: what its end wrote, see result.json; empty before.
      test: what `dh2l train --test` wrote; empty before.
    """

    workdir: Path
    config: Config
    data: DataRecord
    result: dict[str, Any]
    test: dict[str, Any]

    @property
    def tree(self) -> Hierarchy:
        """The classes, in the order of the logits, and what lies above them."""
        return self.data.fingerprint.tree

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.tree.names(self.tree.num_levels)

    @property
    def mean(self) -> np.ndarray:
        """(c,) float32, what is subtracted from pixels / 255."""
        return self.data.mean

    @property
    def std(self) -> np.ndarray:
        """(c,) float32, what they are divided by then."""
        return self.data.std

    @property
    def size(self) -> tuple[int, int, int]:
        """Height, width and channels of what the network sees."""
        height, width = crop_size(self.config, self.data.image_shape, self.config.data.name)
        return height, width, self.data.image_shape[2]

    @property
    def temperature(self) -> float:
        """What logits are divided by before their softmax; 1 where none was fitted."""
        return float(self.result.get("temperature", 1.0))

    @functools.cached_property
    def outputs(self) -> Outputs:
        """Of the last state, on the images that the run was evaluated on, `result["split"]`.

        Raises:
          ValueError: there are none; the line says how they come.
        """
        return self._read(OUTPUTS, self.result, "--eval-only")

    def test_outputs(self, state: str) -> Outputs:
        """Of the state "last" or "best_on_validation" on the test images, see `outputs`."""
        return self._read(outputs_name(state), self.test, "--test")

    def _read(self, name: str, values: dict[str, Any], flag: str) -> Outputs:
        path = self.workdir / name
        if name not in values.get("files", {}):
            raise ValueError(
                f"{self.workdir} holds no {name}: `dh2l train {flag} --workdir {self.workdir}`, "
                "where its images are, writes it"
                if self.result
                else f"{self.workdir} holds a run that is not finished: "
                f"`dh2l train --workdir {self.workdir}` goes on"
            )
        try:
            return Outputs.unpack(read_plain(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def read_facts(workdir: Path) -> RunFacts:
    """What the folder of a run holds, each file of it as it was written; no image is read.

    Raises:
      ValueError: it holds no run, a file is damaged, or the run is from before checkpoints knew
        their data; the line says what to do.
      OSError: a file cannot be read.
    """
    config, path = read_config(workdir), workdir / TEST
    result = read_result(workdir) if is_finished(workdir) else {}
    try:
        test = read_sealed(path) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged: {error}: `dh2l train --test` makes it anew"
        ) from error
    refuse_damaged(workdir, test)
    record = evidence.data_record(workdir / evidence.LAST)
    if record is None:
        saved = evidence.steps(workdir / evidence.LAST)
        raise ValueError(
            f"{workdir} is from before checkpoints knew their classes: move {RESULT} and "
            f"{evidence.LAST}/{saved[-1]} away, and `dh2l train --workdir {workdir}`, where its "
            "images are, makes them anew"
            if saved
            else f"{workdir} holds no checkpoint: `dh2l train --workdir {workdir}` goes on"
        )
    return RunFacts(workdir, config, DataRecord.unpack(record), result, test)


def crop_size(
    config: Config, image_shape: tuple[int | None, int | None, int], name: str
) -> tuple[int, int]:
    """Height and width of what the network sees."""
    height, width, _ = image_shape
    side = config.data.crop
    if side:
        return side, side
    if height is None or width is None:
        raise ValueError(
            f"the images of {name} differ in size: set data.crop, the side of the square that the "
            "network sees, and data.resize, the shorter side of the images"
        )
    return height, width


def gravest(
    logits: np.ndarray, labels: np.ndarray, tree: Hierarchy, count: int = WORST
) -> np.ndarray:
    """(≤ count,) int32: the images of the gravest mistakes, the most severe first.

    Of equally severe ones the surer comes first, and at last the earlier image. An image labelled
    at an inner node has no severity.

    >>> tree = Hierarchy.two_level([0, 0, 1])
    >>> logits = np.array([[0, 0, 1.0], [9, 0, 0], [0, 1, 0], [0, 0, 2]], np.float32)
    >>> gravest(logits, np.array([0, 0, 0, 1]), tree).tolist()
    [3, 0, 2]
    """
    known = np.logical_not(np.isnan(logits).any(axis=1))
    logits = np.where(known[:, None], logits, 0)
    found = logits.argmax(axis=1)
    known &= labels < tree.num_classes
    above, heights = tree.ancestor_nodes(), tree.node_heights()
    classes, severity = np.where(known, labels, 0), np.full(len(labels), heights[-1])
    for row in above:
        np.copyto(severity, heights[row[found]], where=row[found] == row[classes])
    severity = np.where(known, severity, 0)
    sure = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, dtype=np.float64)
    order = np.lexsort((-sure, -severity))
    return order[: min(count, np.count_nonzero(severity))].astype(np.int32)
