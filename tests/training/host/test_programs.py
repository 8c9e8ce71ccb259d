"""Compiled programs that commands keep: found again, bounded, and never a reason to fail."""

import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from dh2l_jax.training.host import programs

X = np.arange(4, dtype=np.float32)
HITS = "/jax/compilation_cache/cache_hits"


@pytest.fixture
def hits():
    """The programs that JAX has found."""
    found = []

    def listen(event, **_):
        found.append(event) if event == HITS else None

    jax.monitoring.register_event_listener(listen)
    yield found
    jax.monitoring.unregister_event_listener(listen)


def compute(factor=3):
    """A function that JAX has not seen yet, but may have compiled."""
    result = jax.jit(lambda x: x * factor + 1)(X)
    np.testing.assert_array_equal(result, X * factor + 1)


def files(folder, end):
    return sorted(folder.glob(f"*-{end}"))


def write(content):
    return lambda folder: [path.write_bytes(content) for path in files(folder, "cache")]


def flip(folder):
    for path in files(folder, "cache"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def unlink(end):
    return lambda folder: [path.unlink() for path in files(folder, end)]


def replace(make):
    def replaced(folder):
        shutil.rmtree(folder.parent)
        make(folder.parent)

    return replaced


def link(gate):
    (gate.parent / "elsewhere").mkdir()
    gate.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("happens", "found", "kept_again"),
    [
        (lambda folder: None, 1, 1),
        (write(b""), 0, 1),
        (write(b"x\x9c"), 0, 1),
        (flip, 0, 1),
        (unlink("atime"), 0, 1),
        (unlink("cache"), 0, 1),
        (shutil.rmtree, 0, 1),
        (replace(lambda gate: gate.write_bytes(b"")), 0, 0),
        (replace(link), 0, 0),
        (replace(lambda gate: gate.mkdir() or gate.chmod(0o777)), 0, 0),
    ],
    ids=[
        *("whole", "empty", "cut", "flipped", "timeless", "lone_time"),
        *("gone", "file", "link", "open"),
    ],
)
def test_what_is_kept_is_found_or_made_again(kept, hits, capfd, happens, found, kept_again):
    """In silence: a warning would fail the test."""
    programs.prepare_jax()
    compute()
    assert len(files(kept, "cache")) == len(files(kept, "atime")) == 1
    assert not kept.parent.stat().st_mode & 0o77
    jax.config.update("jax_compilation_cache_dir", None)  # as another process has it
    happens(kept)
    programs.prepare_jax()
    compute()
    compute(5)
    assert len(hits) == found
    is_used = jax.config.jax_compilation_cache_dir == str(kept)
    assert is_used == bool(kept_again)
    assert not is_used or len(files(kept, "cache")) == 2
    assert capfd.readouterr() == ("", "")


def test_programs_for_other_cores_are_others(kept, hits, monkeypatch):
    for count, found in ((2, 0), (1, 0), (2, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, count=count: {*range(count)})
        jax.config.update("jax_compilation_cache_dir", None)
        programs.prepare_jax()
        compute()
        assert len(hits) == found
    assert {path.name for path in kept.parent.iterdir()} == {"1-cores", "2-cores"}


def test_deleted_while_it_runs(kept):
    programs.prepare_jax()
    for factor in range(3):
        compute(factor)
        shutil.rmtree(kept)


@pytest.mark.parametrize(
    ("name", "value", "left"), [("MAX_PROGRAMS", 2, {2, 3, 5}), ("MAX_BYTES", 4_000, {5})]
)
def test_the_last_programs_used_are_kept(kept, hits, monkeypatch, name, value, left):
    monkeypatch.setattr(programs, name, value)
    for factor in (2, 3, 4, 2, 3, 5):
        jax.config.update("jax_compilation_cache_dir", None)
        programs.prepare_jax()
        compute(factor)
        for path in files(kept, "atime"):  # a file system's clock may be slow
            os.utime(path, ns=(0, int.from_bytes(path.read_bytes(), "little")))
    assert sum(path.stat().st_size for path in files(kept, "cache")) <= programs.MAX_BYTES
    hits.clear()
    for factor in sorted((2, 3, 4, 5), key=lambda factor: factor not in left):
        before = len(hits)
        compute(factor)
        assert (len(hits) > before) == (factor in left), factor


@pytest.mark.parametrize(
    ("name", "value"),
    [("jax_compilation_cache_dir", "theirs"), ("jax_enable_compilation_cache", False)],
)
def test_the_users_own_settings_win(kept, tmp_path, name, value):
    jax.config.update(name, str(tmp_path / value) if value else value)
    before = dict(jax.config.values)
    programs.prepare_jax()
    assert jax.config.values == before
    assert not kept.exists()


CHILD = """
import jax, numpy as np
from dh2l_jax.training.host import programs
programs.MAX_BYTES = 20_000
programs.prepare_jax()
for factor in [*range(20)] * 3:
    x = np.arange(4.0)
    assert (jax.jit(lambda x: x * factor)(x) == x * factor).all()
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_deleted", [False, True])
def test_several_processes_share_a_folder_that_is_too_small(tmp_path, is_deleted):
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "true"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", CHILD]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    children = [subprocess.Popen(command, env=environment, **pipes) for _ in range(4)]
    folder = tmp_path / "dh2l_jax" / "compiled" / f"{len(os.sched_getaffinity(0))}-cores"
    while is_deleted and any(child.poll() is None for child in children):
        shutil.rmtree(folder, ignore_errors=True)
    assert [child.communicate()[0] for child in children] == [""] * 4
    assert [child.returncode for child in children] == [0] * 4
    if not is_deleted:
        assert 0 < sum(path.stat().st_size for path in files(folder, "cache")) <= 20_000
