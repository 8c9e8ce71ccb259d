"""The lock of a workdir: refuses a second holder by name, and never outlives its process."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from dh2l_jax.training.run import lock
from dh2l_jax.training.run.lock import Lock

# The module is run by its path: importing it by name would import JAX, which takes a second.
HOLD = """
import pathlib, runpy, sys, time
with runpy.run_path(sys.argv[1])["Lock"](pathlib.Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["run", "ein Lauf ü 走"])
def path(tmp_path, request):
    folder = tmp_path / request.param
    folder.mkdir()
    return folder / ".lock"


@pytest.fixture
def holder(path):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, lock.__file__, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_by_whom(path, holder):
    with pytest.raises(ValueError) as error, Lock(path):
        raise AssertionError("two processes hold one lock")
    assert str(error.value) == (
        f"{path.parent} is in use by process {holder.pid} on {socket.gethostname()}: wait for it "
        "or choose another folder"
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_holds_nothing(path, holder, number):
    holder.send_signal(number)
    assert holder.wait() == -number
    with Lock(path):
        assert path.read_text() == f" process {os.getpid()} on {socket.gethostname()}\n"


def test_one_process_cannot_hold_it_twice(path):
    with Lock(path):
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on "), Lock(path):
            raise AssertionError("one process holds one lock twice")
        with pytest.raises(ValueError, match="in use"), Lock(path):
            raise AssertionError("a refused attempt has let go of the lock of another")
    with Lock(path):
        pass


def test_an_error_inside_lets_go(path):
    with pytest.raises(KeyError), Lock(path):
        raise KeyError
    with Lock(path):
        pass


def test_a_child_that_is_left_behind_holds_nothing(path):
    """A program that the holder started, and that outlives it."""
    with Lock(path):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with Lock(path):
        assert child.poll() is None
    child.communicate(b"\n")


@pytest.mark.parametrize("text", [b"", b"\xff\n\n" + b"x" * 1000])
def test_what_the_file_held_before_is_no_matter(path, text):
    path.write_bytes(text)
    with Lock(path):
        assert path.read_bytes().startswith(f" process {os.getpid()} on ".encode())


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(OSError, match=r"none/\.lock"), Lock(tmp_path / "none" / ".lock"):
        raise AssertionError


@pytest.mark.parametrize("exists", [True, False])
def test_a_planted_link_is_refused_and_not_followed(path, exists):
    target = path.parent / "precious"
    if exists:
        target.write_text("letters")
    path.symlink_to(target)
    with pytest.raises(OSError, match=r"\.lock cannot be locked: it is a link$"), Lock(path):
        raise AssertionError("a link was followed")
    assert (target.read_text() == "letters") if exists else not target.exists()


def test_of_several_that_come_at_once_one_gets_it(path):
    command = [sys.executable, "-c", HOLD, lock.__file__, str(path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(4)]
    refused = [process for process in processes if process.stdout.readline() != "held\n"]
    lines = [process.communicate()[1].splitlines()[-1] for process in refused]
    (holder,) = set(processes) - set(refused)
    holder.kill()
    holder.communicate()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith(f"ValueError: {path.parent} is in use by ")
