"""Processes that train as one: real ones on this machine, which exchange their sums by Gloo."""

import contextlib
import json
import re
import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from support import distributed as distributed_checks
from support import resume
from support.programs import finish, free_port, started

from dh2l_jax.training.config import DistributedConfig
from dh2l_jax.training.host import processes as processes_module

pytestmark = pytest.mark.xdist_group("distributed")

CHECKS = Path(distributed_checks.__file__)
ROOT = CHECKS.parents[2]
LIMIT = 240  # seconds: nothing here may hang
KINDS = tuple(distributed_checks.KINDS)


def checks(what, options):
    """The programs that do it, one for each set of options."""
    return [(CHECKS, what, json.dumps(values)) for values in options]


def together(count=2, **options):
    """The options of so many processes."""
    address = f"localhost:{free_port()}"
    common = {"coordinator": address, "processes": count, **options}
    return [{**common, "process": number} for number in range(count)]


def results(what, options, folder, **env):
    """What each process prints at its end."""
    with started(checks(what, options), folder, **env) as processes:
        return [json.loads(line) for line in finish(processes, folder, LIMIT)]


def check_equal(found, expected):
    """Of every kind of feed, the training and the scores."""
    for kind in KINDS:
        one, other = found[kind], expected[kind]
        np.testing.assert_allclose(one["losses"], other["losses"], rtol=1e-5)
        np.testing.assert_allclose(one["statistics"], other["statistics"], rtol=1e-5, atol=1e-5)
        assert one["scores"]["images"] == other["scores"]["images"] == 40
        assert one["scores"]["accuracy"] == other["scores"]["accuracy"]
        np.testing.assert_allclose(one["scores"]["loss"], other["scores"]["loss"], rtol=1e-5)
        assert one["replicated"]
        assert len(set(one["losses"])) == distributed_checks.STEPS


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What two processes with two devices each find out."""
    return results("small", together(), tmp_path_factory.mktemp("pair"))


def test_two_processes_train_as_one(pair):
    alone = {kind: distributed_checks.measure(kind, small=True) for kind in KINDS}
    for process in pair:
        check_equal(process, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_each_process_reads_only_its_share(pair, kind):
    for process in pair:
        assert process[kind]["train"] == process["reads"][kind]
    first, second = (set(process[kind]["train"]) for process in pair)
    assert not first & second
    count = pair[0]["reads"]["images"]
    assert len(first | second) == {"resident": count, "streamed": 64}[kind]
    # Of the 40 test images, those that fill up the last batch are all the first one.
    first, second = (set(process[kind]["test"]) - {0} for process in pair)
    assert not first & second
    assert first | second == set(range(1, 40))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_that_one_process_asks_for_is_known_to_all_at_the_same_step(pair, kind):
    stops = [step == distributed_checks.STOP_AT for step in range(distributed_checks.STEPS)]
    assert [process[kind]["stops"] for process in pair] == [stops, stops]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_the_devices_of_one_process_do_not_matter(pair, tmp_path, devices):
    (found,) = results("small", [{}], tmp_path, devices=devices)
    check_equal(found, pair[0])


@pytest.mark.slow
def test_a_whole_experiment_on_1_2_8_and_2x2_devices(tmp_path):
    """ResNet-8 with a hierarchical head and all of its terms."""
    (expected,) = results("resnet8", [{}], tmp_path / "1", devices=1)
    layouts = {"2": ([{}], 2), "8": ([{}], 8), "2x2": (together(), 2)}
    for name, (options, devices) in layouts.items():
        for found in results("resnet8", options, tmp_path / name, devices=devices):
            check_equal(found, expected)


def wait_for(condition):
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1], ids=["the coordinator", "another"])
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_where_one_process_is_lost_the_other_ends(tmp_path, victim, name):
    with started(checks("sum", together(heartbeat=10)), tmp_path) as processes:
        wait_for(lambda: all("ready" in (tmp_path / f"{n}.out").read_text() for n in (0, 1)))
        processes[victim].send_signal(getattr(signal, name))
        assert processes[1 - victim].wait(30) == processes_module.LOST
    text = (tmp_path / f"{1 - victim}.err").read_text()
    assert text.splitlines()[-1].endswith(f"error: {processes_module.LOST_LINE}")


@pytest.mark.slow
def test_slurm_is_found_by_itself(tmp_path):
    folders, job = [tmp_path / "0", tmp_path / "1"], str(free_port())
    with contextlib.ExitStack() as stack:
        processes = []
        for number, folder in enumerate(folders):
            slurm = {
                "SLURM_JOB_ID": job,
                "SLURM_STEP_NODELIST": "localhost",
                "SLURM_NTASKS": "2",
                "SLURM_PROCID": str(number),
                "SLURM_LOCALID": str(number),
            }
            processes += stack.enter_context(
                started(checks("meet", [{"auto": True}]), folder, **slurm)
            )
        found = [
            json.loads(*finish([process], folder, LIMIT))
            for process, folder in zip(processes, folders, strict=True)
        ]
    assert found == [[0, 2, 4], [1, 2, 4]]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"auto": True}, r"distributed.auto: JAX finds no cluster .*: set distributed.coordinator"),
        (
            {"coordinator": "", "processes": 2, "process": 0},
            "process 0 cannot listen at port .* in use",
        ),
        ({"coordinator": "", "processes": 2, "process": 1}, "not all processes .* within 1 s"),
    ],
    ids=["no cluster", "an address in use", "nobody there"],
)
def test_what_cannot_start_says_so(tmp_path, options, line):
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind(("::", 0))  # and listens to nobody
        port = listener.getsockname()[1]
        if "coordinator" in options:
            options = {**options, "coordinator": f"localhost:{port}"}
        with started(checks("meet", [options | {"timeout": 1}]), tmp_path) as (process,):
            assert process.wait(60) == 2
    assert re.search(line, (tmp_path / "0.err").read_text().splitlines()[-1])


def test_one_process_starts_nothing():
    processes_module.start(DistributedConfig())
    assert not jax.distributed.is_initialized()


# Runs of train.py.

RUN = {
    "model.name": "resnet8",
    "data.fraction": 0.05,
    "data.holdout": 50,
    "batch_size": 40,
    "eval_batch_size": 40,
    "epochs": 4,
    "checkpoint_every": 1,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of two processes that nothing has disturbed, and a cache of programs."""
    folder = tmp_path_factory.mktemp("run")
    with running(folder) as processes:
        assert [process.wait(LIMIT) for process in processes] == [0, 0], errors(folder)
    return folder


@contextlib.contextmanager
def running(folder, cache=None):
    """The two processes of a run in a folder of this one."""
    programs = []
    for own in together(heartbeat=10):
        options = RUN | {f"distributed.{name}": value for name, value in own.items()}
        settings = [f"--set={key}={value}" for key, value in options.items()]
        programs.append((ROOT / "train.py", "--workdir", folder / "run", *settings))
    env = {
        "JAX_COMPILATION_CACHE_DIR": str(cache or folder / "cache"),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with started(programs, folder, **env) as processes:
        yield processes


def errors(folder):
    return [(folder / f"{number}.err").read_text() for number in (0, 1)]


def records(folder):
    path = folder / "run" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def saved(folder):
    """The numbers of the steps on disk, ascending."""
    path = folder / "run" / "checkpoints"
    names = [entry.name for entry in path.iterdir()] if path.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


@pytest.mark.slow
def test_a_run_writes_each_thing_once(trained):
    assert [record["epoch"] for record in records(trained)] == [1, 2, 3, 4]
    assert json.loads((trained / "run" / "result.json").read_text())["steps"] == saved(trained)[-1]
    shown = [(trained / f"{number}.out").read_text().splitlines() for number in (0, 1)]
    shown = [[line for line in lines if not line.startswith("[Gloo]")] for lines in shown]
    assert len(shown[0]) > RUN["epochs"]
    assert not shown[1]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_run_stops_in_both_and_goes_on(trained, tmp_path, name, victim):
    """Asked to stop, both save the same step; where one is lost, the other says so."""
    with running(tmp_path, trained / "cache") as processes:
        wait_for(lambda: records(tmp_path))
        processes[victim].send_signal(getattr(signal, name))
        codes = [process.wait(60) for process in processes]
    if name == "SIGTERM":
        assert codes == [128 + signal.SIGTERM] * 2, errors(tmp_path)
        steps = [re.search(r"after step (\d+)", text)[1] for text in errors(tmp_path)]
        assert [int(step) for step in steps] == [saved(tmp_path)[-1]] * 2
    else:
        assert codes[1 - victim] == processes_module.LOST, errors(tmp_path)
        assert errors(tmp_path)[1 - victim].count(processes_module.LOST_LINE) == 1
    with running(tmp_path, trained / "cache") as processes:
        assert [process.wait(LIMIT) for process in processes] == [0, 0], errors(tmp_path)
    assert len(records(tmp_path)) == RUN["epochs"]
    resume.check_equal(resume.end(tmp_path / "run"), resume.end(trained / "run"))
