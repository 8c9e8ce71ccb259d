"""Who trains the runs of a table: this process, or several side by side.

What trains is imported late: a plan is shown without the packages that it needs.
"""

from __future__ import annotations

import dataclasses
import gc
import io
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from dh2l_jax.files import open_to_append
from dh2l_jax.training.config import Config
from dh2l_jax.training.host.programs import cores
from dh2l_jax.training.run.folder import METRICS
from dh2l_jax.training.run.records import read_records

__all__ = ["LoopTrainer", "SideBySide", "Trainer"]

LOG = "log.txt"


class Trainer(Protocol):
    """Trains and tests one run; any exception of `train` and `test` is a failed run.

    Attributes:
      jobs: how many runs it may be asked for at a time, by as many threads.
    """

    jobs: int

    def check(self, config: Config) -> None:
        """Raises what would stop a run before its first step: missing data, unknown names."""
        ...

    def data(self, config: Config) -> str:
        """Digest of the images, labels and tree, as results have it."""
        ...

    def seconds(self, config: Config) -> float:
        """About the time that a run takes, from a short one."""
        ...

    def train(self, config: Config, workdir: Path) -> Any:
        """Trains in a folder, which may hold an interrupted run; writes config and result."""
        ...

    def test(self, workdir: Path) -> Any:
        """Scores of the saved states on the test set; writes test.json."""
        ...

    def memory(self, config: Config) -> int:
        """Bytes that a training step needs."""
        ...

    def forget(self) -> None:
        """Called after the last run of a setting: later runs share less with it."""
        ...

    def stop(self) -> None:
        """Called where a signal ends the table while runs are trained."""
        ...


class LoopTrainer:
    """The trainer of `training.loop`; what a run prints goes into its folder."""

    jobs = 1

    def check(self, config: Config) -> None:
        """Builds the experiment and lets it go; images that have to be decoded are, once."""
        from dh2l_jax.training import loop

        loop.build(config, progress=True)

    def data(self, config: Config) -> str:
        """Of all images in the folder, whatever part of them is trained on."""
        from dh2l_jax.training import loop

        return loop.build(config).source.fingerprint.sha256

    def seconds(self, config: Config) -> float:
        """From two epochs, whose programs are kept for the runs; the first one compiles."""
        epochs = min(2, config.epochs)
        warmup = min(config.optim.warmup_epochs, epochs)
        optim = dataclasses.replace(config.optim, warmup_epochs=warmup)
        with tempfile.TemporaryDirectory() as folder:
            workdir = Path(folder) / "trial"
            short = dataclasses.replace(config, epochs=epochs, optim=optim)
            result = self.train(short, workdir)
            rate = read_records(workdir / METRICS)[-1]["images_per_second"]
        images = result["steps"] * config.batch_size / epochs
        return result["seconds"] + (config.epochs - epochs) * images / rate

    def train(self, config: Config, workdir: Path) -> Any:
        """Builds, trains from where an interrupted run got to, writes result.json."""
        from dh2l_jax.training import loop
        from dh2l_jax.training.run.console import file_console
        from dh2l_jax.training.run.folder import opened, refuse_foreign_folder

        experiment = loop.build(config)
        try:
            refuse_foreign_folder(workdir, config)
        except ValueError:  # the folder holds no run, or another one
            shutil.rmtree(workdir)
        with opened(workdir, config), open_to_append(workdir / LOG) as file:
            console = file_console(io.TextIOWrapper(file, "utf-8", write_through=True))
            return loop.train(experiment, workdir, console)

    def test(self, workdir: Path) -> Any:
        """Evaluates the last state and the best on validation."""
        from dh2l_jax.training import finished

        return finished.test(workdir)

    def memory(self, config: Config) -> int:
        """Of the compiled step: what goes in and out, and what is needed between."""
        from dh2l_jax.training import loop

        return loop.step_bytes(loop.build(config))

    def forget(self) -> None:
        """Hundreds of runs share the process, and each would leave its programs behind."""
        import jax

        jax.clear_caches()
        gc.collect()

    def stop(self) -> None:
        """The run has had the signal itself."""


class SideBySide(LoopTrainer):
    """Does all of it in several processes: a GPU for each, or its share of the cores.

    Signals of the terminal reach this process alone, which asks the others to save and stop; they
    do so by themselves where it is gone.
    """

    def __init__(self, jobs: int, prepare: Callable[[], None]):
        """Starts nothing yet; each process begins with `prepare`.

        Raises:
          ValueError: there are not as many GPUs, or cores.
        """
        gpus, count = _gpus(), len(cores())
        found, what = (len(gpus), "GPUs") if gpus else (count, "cores")
        if not 1 <= jobs <= found:
            raise ValueError(f"--jobs must lie in [1, {found}], the number of {what}, found {jobs}")
        self.jobs, self._prepare = jobs, prepare
        self._pool, self._lock = None, threading.Lock()

    def check(self, config: Config) -> None:
        """As `LoopTrainer` does it, as everything here."""
        self._do("check", config)

    def data(self, config: Config) -> str:
        """Digest of the images."""
        return self._do("data", config)

    def train(self, config: Config, workdir: Path) -> Any:
        """Trains in one of the processes, as soon as one is free."""
        return self._do("train", config, workdir)

    def test(self, workdir: Path) -> Any:
        """Evaluates in one of them."""
        return self._do("test", workdir)

    def memory(self, config: Config) -> int:
        """Of the step on the devices of one of them."""
        return self._do("memory", config)

    def stop(self) -> None:
        """What is being trained saves and stops; a process without a run does not mind."""
        for process in multiprocessing.active_children():
            os.kill(process.pid or 0, signal.SIGTERM)

    def forget(self) -> None:
        """The processes end, and with them what they have compiled."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool:
            pool.shutdown()

    def _do(self, name: str, *args: Any) -> Any:
        with self._lock:
            self._pool = self._pool or self._started()
            future = self._pool.submit(_quietly, name, *args)
        result, stopped = future.result()
        if stopped:
            raise KeyboardInterrupt
        return result

    def _started(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        numbers = context.SimpleQueue()
        for number in range(self.jobs):
            numbers.put(number)
        begin = (numbers, self.jobs, self._prepare)
        return ProcessPoolExecutor(self.jobs, context, initializer=_begin, initargs=begin)


_busy = threading.Lock()  # held while this process does something for its parent


def _begin(numbers: Any, jobs: int, prepare: Callable[[], None]) -> None:
    """Takes a share of the machine, before JAX looks at it."""
    number, gpus = numbers.get(), _gpus()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number]
    elif hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores()[number::jobs])
    os.setpgrp()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # training has a handler of its own
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        with _busy:
            os._exit(128 + signal.SIGTERM)


def _quietly(name: str, *args: Any) -> tuple[Any, bool]:
    """What `LoopTrainer` returns, and whether it was stopped; any error as one that travels."""
    with _busy:
        try:
            return getattr(LoopTrainer(), name)(*args), False
        except KeyboardInterrupt:
            return None, True
        except Exception as error:
            raise RuntimeError(str(error) or type(error).__name__) from error


def _gpus() -> list[str]:
    """NVIDIA's GPUs, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    numbers = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return sorted(numbers, key=int)
