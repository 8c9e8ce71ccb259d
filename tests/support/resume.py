"""A training that is interrupted and goes on, against one that is not; the child of `test_resume`.

cd tests && JAX_NUM_CPU_DEVICES=8 python -m support.resume FOLDER KIND DTYPE
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import jax
import pytest
from rich.console import Console

from dh2l_jax.training import loop
from dh2l_jax.training.config import Config, DataConfig, ModelConfig, OptimConfig, RegConfig
from dh2l_jax.training.host.signals import Stopped
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.run.console import Log
from dh2l_jax.training.run.folder import METRICS, RESULT, opened, read_config
from dh2l_jax.training.run.records import read_records

STEPS = 5  # of an epoch
SMALL = {"data": {"fraction": 0.05, "holdout": 50}, "batch_size": 48, "eval_batch_size": 48}
# When the signal comes; it is looked at with the next step, when one more has been sent.
WHERE = {"epoch end": 2 * STEPS - 1, "middle": STEPS + 1}


def config_of(kind: str, dtype: str, **options) -> Config:
    """Of three epochs with an evaluation after each; images on the device or streamed by Grain.

    Those that are streamed end epochs in the middle of a lot, and have running means.
    """
    where = {
        "resident": (4.0, "uniform", {}),
        "streamed": (0.0, "balanced", {"accumulate": 2, "ema": 0.5}),
    }
    device_gb, sampling, tricks = where[kind]
    data = DataConfig(device_gb=device_gb, sampling=sampling, **SMALL["data"])
    sizes = {name: SMALL[name] for name in ("batch_size", "eval_batch_size")}
    return Config(
        epochs=3,
        eval_every=1,
        data=data,
        model=ModelConfig(name="resnet8", dtype=dtype),
        reg=RegConfig(schedule="cosine"),
        optim=OptimConfig(lr=0.05, schedule="cosine", **tricks),
        **sizes,
        **options,
    )


def train(config: Config, workdir: Path, *, interrupt: int = 0) -> int | None:
    """Trains to the end, or until a signal sent when a step has been looked at; its step then."""
    looked_at, numbers = Log.step, itertools.count(1)

    def interrupting(self, epoch, steps=1):
        looked_at(self, epoch, steps)
        if next(numbers) == interrupt:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # until it is noted

    with pytest.MonkeyPatch.context() as patch, opened(workdir, config):
        patch.setattr(Log, "step", interrupting)
        try:
            loop.train(loop.build(config), workdir, Console(quiet=True))
        except Stopped as stopped:
            return stopped.step
    return None


def end(workdir: Path) -> dict:
    """All that a run has come to, to the bit, without what depends on the clock."""
    like = loop.build(read_config(workdir), training=False).init(abstract=True)
    found = {}
    for folder in (checkpoint.LAST, checkpoint.BEST):
        saved = checkpoint.restore(workdir, like, folder)
        leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(saved.state))
        found |= {folder + jax.tree_util.keystr(path): leaf.tobytes() for path, leaf in leaves}
        found[folder] = saved.progress
    found["records"] = read_records(workdir / METRICS)
    found["result"] = json.loads((workdir / RESULT).read_text("utf-8"))
    for values in (*found["records"], found["result"]):
        values.pop("seconds", None)
        values.pop("images_per_second", None)
        values.pop("files", None)  # digests of those that tell seconds
        values.pop("sha256", None)
    return found


def check_equal(found: dict, expected: dict) -> None:
    """Raises an `AssertionError` that names what differs between two ends."""
    assert found.keys() == expected.keys()
    different = [name for name in expected if expected[name] != found[name]]
    assert not different, different


def check(folder: Path, kind: str, dtype: str, places: Iterable[str] = tuple(WHERE)) -> None:
    """The interrupted runs end as the one that was left alone.

    Raises:
      AssertionError: something differs.
    """
    config = config_of(kind, dtype)
    assert train(config, folder / "whole") is None
    expected = end(folder / "whole")
    assert len(expected["records"]) == 3
    for where in places:
        stopped = train(config, folder / where, interrupt=WHERE[where])
        assert stopped is not None
        assert (stopped % STEPS == 0) == (where == "epoch end"), stopped
        assert train(config, folder / where) is None
        check_equal(end(folder / where), expected)


if __name__ == "__main__":
    check(Path(sys.argv[1]), *sys.argv[2:])
    print("equal")
