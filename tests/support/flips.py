"""Damages files of runs and of their cache, one at a time, and asks what a command makes of it.

cd tests && python -m support.flips --flips 1000        some five minutes on two cores

A damage is *named* where a line tells of it, and *harmless* where all that the command takes from
the files is as it was. *Silent* is the rest, and must not be.
"""

from __future__ import annotations

import argparse
import io
import logging
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from dh2l_jax.commands.train import show_result
from dh2l_jax.training import loop
from dh2l_jax.training.config import Config, from_dict
from dh2l_jax.training.experiment import refuse_other_data
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.run import folder as run_folder
from support.folders import picture

VALUES = {
    "epochs": 2,
    "batch_size": 4,
    "eval_batch_size": 4,
    "eval_every": 1,
    "reg": {"lambda_e": 0},
    "model": {"name": "resnet8", "head": "plain"},
    "data": {"name": "folder", "resize": 8, "crop": 8, "pad": 0, "holdout": 2},
}
STATES = {"finished": True, "stopped": False}


def make(root: Path) -> Config:
    """A finished run and one that was stopped, of images in a folder with their cache."""
    for number, name in enumerate(("gulls/ivory", "owls/snowy")):
        for i in range(8):
            path = root / "images" / ("train" if i < 6 else "test") / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(100 * number + i, size=(8, 8)))
    data = VALUES["data"] | {"data_dir": str(root / "images"), "cache_dir": str(root / "cache")}
    config = from_dict(VALUES | {"data": data})
    with run_folder.opened(root / "finished", config):
        loop.train(loop.build(config), root / "finished", Console(quiet=True))
    shutil.copytree(root / "finished", root / "stopped")
    for name in ("result.json", "outputs.npz", "confusion.csv", "confusion.json"):
        (root / "stopped" / name).unlink()
    return config


def taken(root: Path, name: str, config: Config) -> tuple[list[str], list[Any]]:
    """The lines of the command that shows a run, or goes on with it, and all that it takes.

    Raises:
      Exception: what a command would turn into a line.
    """
    workdir, lines = root / name, list[str]()
    run_folder.refuse_foreign_folder(workdir, config)
    read = run_folder.read_config(workdir)
    shown = io.StringIO()
    if run_folder.is_finished(workdir):
        show_result(workdir, Console(file=shown, width=200))
    experiment = loop.build(read)
    data = experiment.source.fingerprint.sha256
    if not refuse_other_data(experiment, workdir):
        lines.append("from before")
    if name == "stopped":
        state, progress = loop._begin(experiment, workdir, lines.append)
        kept = [(workdir / "metrics.jsonl").read_bytes(), progress]
    else:
        like = experiment.init(abstract=True)
        state, progress = checkpoint.restore(workdir, like, print_line=lines.append)
        best = checkpoint.restore(workdir, like, checkpoint.BEST, print_line=lines.append)
        kept = [progress, best.progress, bits(best.state), (workdir / "confusion.csv").read_bytes()]
    lines = [line for line in lines if not line.startswith("goes on after")]
    return lines, [read, shown.getvalue(), data, bits(state), kept]


def bits(tree: Any) -> list[bytes]:
    """Every leaf, to the bit."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def flip(content: bytes, rng: random.Random) -> bytes:
    """One bit is another."""
    place, changed = rng.randrange(len(content)), bytearray(content)
    changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_end(content: bytes, rng: random.Random) -> bytes:
    """The end is missing."""
    return content[: rng.randrange(len(content))]


def cut_inside(content: bytes, rng: random.Random) -> bytes:
    """A piece, or a line where there are some, is missing."""
    lines = content.splitlines(keepends=True)
    if len(lines) > 1 and rng.random() < 0.5:
        del lines[rng.randrange(len(lines))]
        return b"".join(lines)
    first, last = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:first] + content[max(last, first + 1) :]


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip,
    flip,
    flip,
    cut_end,
    cut_inside,
)


class Heard(logging.Handler):
    """Counts what is logged: the cache says so where it decodes again. A context manager."""

    lines = 0

    def emit(self, record: logging.LogRecord) -> None:
        """One more."""
        self.lines += 1

    def __enter__(self) -> Heard:
        self.logger = logging.getLogger("dh2l_jax")
        self.logger.addHandler(self)
        self.logger.propagate = False
        return self

    def __exit__(self, *exception: object) -> None:
        self.logger.removeHandler(self)
        self.logger.propagate = True


def judge(root: Path, name: str, config: Config, expected: list[Any], heard: Heard) -> str:
    """What a command makes of the files as they are now."""
    heard.lines = 0
    try:
        lines, found = taken(root, name, config)
    except (ValueError, OSError) as error:
        return "named, refused" if str(error).isprintable() else "SILENT"
    if lines:
        return "named, goes on"
    if heard.lines and found == expected:
        return "named, made again"
    return "harmless" if not heard.lines and found == expected else "SILENT"


def run(folder: Path, flips: int, seed: int) -> dict[str, Counter[str]]:
    """Damages so often; by kind of file, how often each judgement was given.

    Raises:
      AssertionError: a damage was silent, or an error of more than a line.
    """
    rng, made, whole = random.Random(seed), folder / "made", folder / "whole"
    config = make(made)
    expected = {name: taken(made, name, config)[1] for name in STATES}
    shutil.copytree(made, whole)
    files = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file()]
    files = [path for path in files if path.parts[0] != "images" and (whole / path).stat().st_size]
    few = [path for path in files if "checkpoints" not in path.parts[1]]
    counts: dict[str, Counter[str]] = {}
    with Heard() as heard:
        for number in range(flips):
            # Every file has its turn, and those outside of checkpoints have more of them.
            path = files[number // 2 % len(files)] if number % 2 else rng.choice(few)
            damage, (place, name, *_) = rng.choice(DAMAGES), path.parts
            for copied in (*STATES, "cache"):
                shutil.rmtree(made / copied)
                shutil.copytree(whole / copied, made / copied)
            (made / path).write_bytes(damage((whole / path).read_bytes(), rng))
            reader = place if place in STATES else "stopped"
            verdict = judge(made, reader, config, expected[reader], heard)
            kind = f"{place}, {'checkpoints' if name.startswith('checkpoints') else path.name}"
            counts.setdefault(kind, Counter())[verdict] += 1
            assert verdict != "SILENT", (path, damage.__name__, number)
    return counts


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = run(Path(folder), options.flips, options.seed)
    for kind, found in sorted(counts.items()):
        print(f"{kind:<28}", ", ".join(f"{count} {what}" for what, count in found.most_common()))
    total = sum(counts.values(), Counter())
    print(f"{options.flips} damages:", ", ".join(f"{n} {what}" for what, n in total.most_common()))


if __name__ == "__main__":
    main()
