"""Kills a real training at random moments, again and again, and compares its end with another's.

cd tests && python -m support.kills --kills 100        some ten minutes on two cores
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from support.resume import check_equal, end

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    "model.name": "resnet8",
    "data.fraction": 0.05,
    "data.holdout": 50,
    "batch_size": 50,
    "eval_batch_size": 50,
    "eval_every": 2,
    "checkpoint_every": 1,
}
STARTING = 4.0  # seconds within which a kill meets a process that starts
STEPPING = 0.3  # seconds within which a kill meets steps and saves
PATIENCE = 300.0  # seconds after which a process is thought to hang


@dataclasses.dataclass
class Job:
    """A training that is started over and over.

    Attributes:
      workdir: of its run.
      epochs: of five steps each.
      cache: of the user, with compiled programs, so that a start takes seconds.
    """

    workdir: Path
    epochs: int
    cache: Path

    def start(self) -> subprocess.Popen:
        """One more process."""
        command = [sys.executable, str(ROOT / "train.py"), "--workdir", str(self.workdir)]
        for key, value in (OPTIONS | {"epochs": self.epochs}).items():
            command += ["--set", f"{key}={value}"]
        environment = os.environ | {
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "XDG_CACHE_HOME": str(self.cache),
            "JAX_NUM_CPU_DEVICES": "1",  # whatever the tests use
        }
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=environment, text=True, **pipes)

    def finish(self) -> None:
        """Runs to the end without being disturbed."""
        process = self.start()
        _, errors = process.communicate(timeout=PATIENCE + 30 * self.epochs)
        assert process.returncode == 0, errors

    def newest(self) -> int:
        """The newest step that has been saved."""
        folder = self.workdir / "checkpoints"
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return max((int(name) for name in names if name.isdigit()), default=0)

    def unfinished(self) -> set[Path]:
        """What saves have left that were cut off, the next one's until then."""
        return set(self.workdir.glob("checkpoints*/unfinished/*"))

    def kill(self, rng: random.Random) -> str:
        """Starts a process and kills it; where it was."""
        before, leftovers = self.newest(), self.unfinished()
        process = self.start()
        if rng.random() < 0.25:
            time.sleep(rng.uniform(0, STARTING))
        else:
            self._wait(process, lambda: self.newest() > before)
            time.sleep(rng.uniform(0, STEPPING))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=PATIENCE)
        if process.returncode == 0:
            return "after the end"
        assert process.returncode == -signal.SIGKILL, errors
        if self.unfinished() - leftovers:
            return "in a save"
        return "in training" if self.newest() > before else "before the first step"

    def interrupt(self, number: signal.Signals) -> None:
        """Starts a process and asks it to stop as soon as it has saved something."""
        before, process = self.newest(), self.start()
        self._wait(process, lambda: self.newest() > before)
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 128 + number, (process.returncode, errors)
        assert f"stopped by {number.name} after step {self.newest()}: the same" in errors, errors

    @staticmethod
    def _wait(process: subprocess.Popen, ready) -> None:
        limit = time.monotonic() + PATIENCE
        while process.poll() is None and not ready():
            assert time.monotonic() < limit, "the process hangs"
            time.sleep(0.002)


def run(
    folder: Path,
    kills: int,
    epochs: int,
    seed: int,
    signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT),
) -> Counter[str]:
    """Kills a run so often, interrupts it, lets it end, and compares it with one left alone.

    Raises:
      AssertionError: something differs, or a process failed in another way.
    """
    rng, places = random.Random(seed), Counter()
    alone = Job(folder / "alone", epochs, folder / "cache")
    killed = dataclasses.replace(alone, workdir=folder / "killed ü")
    alone.finish()
    for number in range(kills):
        place = killed.kill(rng)
        places[place] += 1
        print(f"kill {number + 1} of {kills}: {place}, step {killed.newest()}", flush=True)
    for number in signals:
        killed.interrupt(number)
    killed.finish()
    check_equal(end(killed.workdir), end(alone.workdir))
    assert list((folder / "cache" / "dh2l_jax" / "compiled").glob("*/jit_train_step*-cache"))
    return places


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=120, help="of 5 steps; enough for the kills")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        places = run(Path(folder), options.kills, options.epochs, options.seed)
    shown = ", ".join(f"{count} {place}" for place, count in places.most_common())
    print(
        f"{options.kills} kills ({shown}), a SIGTERM and a SIGINT: "
        "the end is that of a run without, in every bit"
    )


if __name__ == "__main__":
    main()
