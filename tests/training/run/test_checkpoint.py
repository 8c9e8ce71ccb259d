"""Checkpoints: what is restored is what was saved, bit for bit, or an error of one line."""

import dataclasses
import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from support.programs import finish, free_port, started

from dh2l_jax.training.run import checkpoint, manifest
from dh2l_jax.training.step.state import TrainState

OPTIMISERS = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "chain": optax.chain(
        optax.add_decayed_weights(1e-4), optax.adamw(optax.cosine_decay_schedule(1, 9))
    ),
}


def state_of(step, seed=0, *, optimiser="sgd", classes=4, **fields):
    """A state with values of every kind in it."""
    rng = np.random.default_rng((seed, step))
    odd = np.array([0.0, -0.0, np.inf, np.nan, 1e-45, -1.0], np.float32)
    odd[3:4].view(np.uint32)[:] = 0x7FC12345  # a NaN with a payload
    params = {
        "head": {"kernel": jnp.asarray(rng.normal(size=(8, classes)), jnp.float32)},
        "half": jnp.asarray(rng.normal(size=(3, 5)), jnp.bfloat16),
        "minus": jnp.full((2, 3), -0.0),
        "odd": jnp.asarray(odd),
        "scalar": jnp.asarray(rng.normal(), jnp.float32),
    }
    values = {
        "step": jnp.asarray(step, jnp.int32),
        "params": params,
        "batch_stats": {"norm": {"mean": jnp.asarray(rng.normal(size=7), jnp.float32)}},
        "opt_state": OPTIMISERS[optimiser].init(params),
        "key": jax.random.key_data(jax.random.key(seed)),
    } | fields
    others = {f.name for f in dataclasses.fields(TrainState)} - values.keys() - {"ema"}
    return TrainState(**values, **{name: jnp.float32(rng.normal()) for name in others})


def bits(state):
    """Path, shape, type and bytes of every leaf."""
    return [
        (jax.tree_util.keystr(path), leaf.shape, leaf.dtype.name, np.asarray(leaf).tobytes())
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]


def one_line(error):
    text = str(error.value if isinstance(error, pytest.ExceptionInfo) else error)
    assert text.isprintable(), "one line"
    return text


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with the steps 5 and 9; copy it before you damage it."""
    workdir = tmp_path_factory.mktemp("saved")
    for step in (5, 9):
        checkpoint.save(workdir, state_of(step), {"step": step})
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def files(workdir, step):
    """The files of a step, by name relative to it."""
    folder = workdir / checkpoint.LAST / str(step)
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


def restored(workdir, step, damage=()):
    """Restores; the state is that of the step, and each damaged step is told of in a line."""
    told = []
    found = checkpoint.restore(workdir, state_of(0), print_line=told.append)
    assert bits(found.state) == bits(state_of(step))
    assert found.progress == {"step": step}
    path = workdir / checkpoint.LAST
    assert told == [
        f"checkpoint {path / str(number)} is damaged ({problem}): step {step} is used in its place"
        for number, problem in damage
    ]


def refused(workdir, line, kind=checkpoint.CheckpointError, **changes):
    """Restoring fails with exactly this error, in one line of this pattern."""
    before = changes.pop("before", None)
    with pytest.raises(ValueError) as caught:
        checkpoint.restore(workdir, state_of(0, **changes), before=before)
    assert type(caught.value) is kind
    assert re.fullmatch(line, one_line(caught))


# What comes back.


def on_devices(number):
    mesh = jax.make_mesh((number,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec())


@pytest.mark.parametrize(
    ("fields", "saved_on", "restored_on"),
    [
        ({}, 1, 1),
        ({}, 2, 2),
        ({}, 2, 1),
        ({"optimiser": "chain"}, 1, 1),
        ({"optimiser": "chain"}, 2, 2),
        ({"batch_stats": {}, "opt_state": optax.EmptyState()}, 1, 1),
        ({"ema": {"params": {"kernel": np.ones((2, 3), np.float32)}, "batch_stats": {}}}, 1, 1),
    ],
)
def test_every_bit_comes_back_where_it_is_wanted(tmp_path, fields, saved_on, restored_on):
    state = state_of(3, **fields)
    path = checkpoint.save(tmp_path, jax.device_put(state, on_devices(saved_on)))
    assert path == tmp_path / "checkpoints" / "3"
    found = checkpoint.restore(tmp_path, jax.device_put(state, on_devices(restored_on)))
    assert jax.tree.structure(found.state) == jax.tree.structure(state)
    assert bits(found.state) == bits(state)
    assert found.progress == {}
    for leaf in jax.tree.leaves(found.state):
        assert leaf.sharding == on_devices(restored_on)
    abstract = jax.eval_shape(lambda: state_of(0, **fields))
    assert bits(checkpoint.restore(tmp_path, abstract).state) == bits(state)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=3)
@given(progress=st.dictionaries(st.text(), JSON, min_size=3, max_size=6))
def test_progress_comes_back(tmp_path_factory, progress):
    workdir = tmp_path_factory.mktemp("progress")
    tiny = TrainState(**{f.name: jnp.zeros((), jnp.int32) for f in dataclasses.fields(TrainState)})
    checkpoint.save(workdir, tiny, progress)
    assert repr(checkpoint.restore(workdir, tiny).progress) == repr(progress)


# Which steps there are.


def test_the_newest_steps_are_kept(tmp_path):
    assert checkpoint.steps(tmp_path) == []
    for step in (1, 2, 10, 11):
        checkpoint.save(tmp_path, state_of(step), {"step": step})
    assert checkpoint.steps(tmp_path) == [2, 10, 11]
    checkpoint.save(tmp_path, state_of(12), {"step": 12}, keep=1)
    checkpoint.save(tmp_path, state_of(7), folder=checkpoint.BEST)
    assert checkpoint.steps(tmp_path) == [12]
    assert checkpoint.steps(tmp_path, checkpoint.BEST) == [7]
    restored(tmp_path, 12)


def test_a_step_is_replaced_and_a_future_given_up(workdir):
    checkpoint.save(workdir, state_of(5, seed=1), {"again": True})
    assert checkpoint.steps(workdir) == [5]
    found = checkpoint.restore(workdir, state_of(0), print_line=pytest.fail)
    assert bits(found.state) == bits(state_of(5, seed=1))
    assert found.progress == {"again": True}


def test_steps_after_one_are_forgotten(workdir):
    for step, kept in ((9, [5, 9]), (8, [5])):
        checkpoint.forget_after(workdir, step, checkpoint.LAST)
        assert checkpoint.steps(workdir) == kept
    restored(workdir, 5)
    checkpoint.forget_after(workdir, 0)  # the folder of the best states does not exist
    assert not (workdir / checkpoint.BEST).exists()


def test_the_newest_before_a_step(workdir):
    for before, step in ((10, 9), (9, 5), (6, 5)):
        found = checkpoint.restore(workdir, state_of(0), before=before)
        assert bits(found.state) == bits(state_of(step))
    refused(workdir, "no checkpoint in .* before step 5: .*", checkpoint.NoCheckpoint, before=5)


@pytest.mark.parametrize("name", ["", "x", "05", "-1", "٣", "5.orbax-checkpoint-tmp", "9" * 200])
def test_what_is_no_step(tmp_path, name):
    """Only a whole number as it is written is a step; and a file never is."""
    path = tmp_path / checkpoint.LAST
    (path / name).mkdir(parents=True)
    (path / "3").touch()
    if name == "9" * 200:
        assert checkpoint.steps(tmp_path) == [int(name)]
        return
    assert checkpoint.steps(tmp_path) == []
    refused(tmp_path, "no checkpoint in .*", checkpoint.NoCheckpoint)


def test_a_save_that_was_cut_off_leaves_nothing(workdir):
    cut = workdir / checkpoint.LAST / "unfinished" / "12.orbax-checkpoint-tmp" / "state"
    cut.mkdir(parents=True)
    (cut / "manifest.ocdbt").write_bytes(b"half")
    assert checkpoint.steps(workdir) == [5, 9]
    restored(workdir, 9)
    assert cut.exists(), "a reader deletes nothing: a writer may be at work"
    checkpoint.save(workdir, state_of(12))
    assert sorted(p.name for p in (workdir / checkpoint.LAST).iterdir()) == ["12", "5", "9"]


# Damage.


RNG = random.Random(0)


def flipped(data):
    """With one bit flipped."""
    byte, bit = RNG.randrange(len(data)), RNG.randrange(8)
    return data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :]


DAMAGES = {
    "flipped": flipped,
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "garbage": lambda data: RNG.randbytes(len(data)),
    "longer": lambda data: data + b"\n",
    "deleted": lambda data: None,
}


def damages(workdir, step, kind, times=1):
    """Damages each file of a step in turn, and mends it: name, what the manifest says, time."""
    for name, path in files(workdir, step).items():
        data = path.read_bytes()
        for time in range(times):
            damaged = DAMAGES[kind](data)
            path.unlink() if damaged is None else path.write_bytes(damaged)
            problem = manifest.problem(workdir / checkpoint.LAST / str(step))
            assert problem, f"{name} was {kind}, and nothing is told"
            expected = f"{name} is missing" if damaged is None else f"{name}: SHA-256 differs"
            assert name == manifest.NAME or problem == expected
            yield name, problem, time
            path.write_bytes(data)


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_of_every_file_in_turn(workdir, kind):
    """None is silent; some of it goes all the way through `restore`."""
    for _, problem, time in damages(workdir, 9, kind, times=20 if kind == "flipped" else 1):
        if kind in ("flipped", "garbage", "deleted") and not time:
            restored(workdir, 5, [(9, problem)])
    restored(workdir, 9)


def test_damage_of_an_older_step_harms_nobody_and_of_the_only_one_is_named(workdir):
    for _ in damages(workdir, 5, "flipped"):
        restored(workdir, 9)
    checkpoint.forget_after(workdir, 5, checkpoint.LAST)
    for _, problem, _ in damages(workdir, 5, "flipped"):
        problem = re.escape(problem)
        refused(workdir, rf".*5 is damaged \({problem}\), and there is no intact one before it")
    restored(workdir, 5)


def test_damage_is_a_warning_where_nobody_is_told(workdir):
    files(workdir, 9)["progress/metadata"].write_bytes(b"{}")
    with pytest.warns(UserWarning, match="progress/metadata: SHA-256 differs.*step 5 is used"):
        checkpoint.restore(workdir, state_of(0))


def test_files_swapped_between_steps(workdir):
    newer, older = files(workdir, 9), files(workdir, 5)
    folder, swapped = workdir / checkpoint.LAST / "9", 0
    # Names that hold data are random: pairs are made of the first, the second ...
    for (name, path), other in zip(newer.items(), older.values(), strict=False):
        mine, theirs = path.read_bytes(), other.read_bytes()
        if mine == theirs:
            continue
        path.write_bytes(theirs)
        restored(workdir, 5, [(9, manifest.problem(folder))])
        other.write_bytes(mine)
        problem = ".*" if name == manifest.NAME else f".*{re.escape(name)}.*"
        refused(workdir, rf".*9 is damaged \({problem}\), and there is no intact one before it")
        path.write_bytes(mine)
        other.write_bytes(theirs)
        swapped += 1
    assert swapped > 6
    restored(workdir, 9)


def test_steps_under_wrong_numbers(workdir):
    path = workdir / checkpoint.LAST
    (path / "9").rename(path / "12")
    restored(workdir, 5, [(12, "it holds step 9")])
    (path / "5").rename(path / "9")
    (path / "12").rename(path / "5")
    refused(workdir, r".*9 is damaged \(it holds step 5\), and there is no intact one before it")


def test_extra_files_and_links(workdir):
    name, path = next(iter(files(workdir, 9).items()))
    extra = path.parent / "extra"
    extra.write_bytes(b"")
    restored(workdir, 5, [(9, "extra is not listed")])
    extra.unlink()
    path.rename(workdir / "outside")
    path.symlink_to(workdir / "outside")
    restored(workdir, 5, [(9, f"{name} is no plain file")])


def test_damaged_steps_are_replaced_by_the_run_that_goes_on(workdir):
    files(workdir, 9)[manifest.NAME].unlink()
    restored(workdir, 5, [(9, "SHA256SUMS is missing")])
    checkpoint.save(workdir, state_of(7), {"step": 7})
    restored(workdir, 7)
    assert checkpoint.steps(workdir) == [5, 7]
    checkpoint.save(workdir, state_of(9), {"step": 9})
    restored(workdir, 9)


# Checkpoints that are intact and of no use.


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"classes": 5}, r"params/head/kernel has the shape \(8, 4\), expected \(8, 5\)"),
        ({"params": {"body": np.ones(3)}}, "params/body is missing"),
        ({"batch_stats": {}}, "batch_stats/norm/mean is not expected"),
        ({"optimiser": "chain"}, r"opt_state/\S+ is (missing|not expected)"),
        ({"key": np.zeros(2, np.int32)}, "key has the type uint32, expected int32"),
    ],
)
def test_another_model(workdir, change, difference):
    start = re.escape(f"checkpoint {workdir / checkpoint.LAST / '9'} belongs to another model: ")
    refused(workdir, start + difference, **change)


def test_another_structure_of_the_same_leaves(workdir):
    state: Any = state_of(0)
    other = {"0": {"trace": state.opt_state[0].trace}}
    refused(workdir, ".*9 cannot be read: .*", opt_state=other)


def test_folders_of_another_making(workdir):
    """With a manifest, so that nothing but their contents speaks against them."""
    folder = workdir / checkpoint.LAST / "12"
    folder.mkdir()
    (folder / "weights").write_bytes(b"abc")
    manifest.write(folder)
    refused(workdir, ".*belongs to another model: params/.* is missing")
    shutil.rmtree(folder)
    shutil.copytree(workdir / checkpoint.LAST / "9", folder)
    shutil.rmtree(folder / "progress")
    manifest.write(folder)
    refused(workdir, ".*12 cannot be read: .*")


# Saves that fail.


class Killed(BaseException):
    """Passes every handler, as the end of a process does."""


def save_with(monkeypatch, moment, error, *arguments):
    """Saves while one flush or rename raises.

    A save renames (Orbax), flushes its files, renames the manifest, flushes the folders, renames
    the step, and flushes its name: (2, 3) is the third call of the second of these rows.
    """
    rows = []

    def wrapped(name):
        real = getattr(os, name)

        def call(*arguments, **options):
            if not rows or rows[-1][0] != name:
                rows.append([name, 0])
            rows[-1][1] += 1
            if (len(rows), rows[-1][1]) == moment:
                raise error
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("fsync", "rename", "replace"):
            patch.setattr(os, name, wrapped(name))
        checkpoint.save(*arguments)
    return [name for name, _ in rows]


MOMENTS = [(1, 1), (2, 1), (2, 4), (3, 1), (4, 1), (5, 1), (5, 2), (6, 1)]


@pytest.mark.parametrize("step", [9, 12], ids=["replaced", "new"])
@pytest.mark.parametrize("kind", [OSError, Killed])
def test_every_flush_and_rename_fails_in_turn(saved, workdir, monkeypatch, kind, step):
    """What is there is the old state or the new one, and the same save works thereafter."""
    error, new = kind(errno.ENOSPC, os.strerror(errno.ENOSPC)), state_of(step, seed=1)
    states = {9: [bits(state_of(9))], step: [bits(state_of(9)), bits(new)]}
    rows = save_with(monkeypatch, None, None, workdir, new)
    assert rows == ["rename", "fsync", "replace", "fsync", "rename", "fsync"]
    for moment in MOMENTS if step == 9 else set(MOMENTS) - {(5, 2)}:
        shutil.rmtree(workdir)
        shutil.copytree(saved, workdir)
        with pytest.raises(kind) as caught:
            save_with(monkeypatch, moment, error, workdir, new)
        if kind is OSError:
            start = (
                f"cannot save {workdir / checkpoint.LAST / str(step)}: No space left on device; "
            )
            assert re.fullmatch(re.escape(start) + r"step (9|12) is kept", one_line(caught))
        found = checkpoint.restore(workdir, new, print_line=pytest.fail).state
        if kind is Killed and moment == (5, 2):  # between the two renames of a replacement
            assert bits(found) == bits(state_of(5))
        else:
            assert bits(found) in states[int(found.step)]
        checkpoint.save(workdir, new)
        found = checkpoint.restore(workdir, new, print_line=pytest.fail).state
        assert bits(found) == bits(new)
        assert not (workdir / checkpoint.LAST / "unfinished").exists()


@pytest.mark.parametrize("place", ["workdir", "folder"])
def test_a_file_in_the_place_of_a_folder(tmp_path, place):
    path = tmp_path if place == "folder" else tmp_path / "run"
    (path / checkpoint.LAST if place == "folder" else path).touch()
    with pytest.raises(OSError, match="Not a directory; no step is kept") as caught:
        checkpoint.save(path, state_of(3))
    assert one_line(caught).startswith(f"cannot save {path / checkpoint.LAST / '3'}: ")


def test_a_save_that_does_not_fit_is_not_begun(workdir, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2**17))
    monkeypatch.setattr(checkpoint, "_manager", pytest.fail)
    with pytest.raises(OSError, match="12: No space left on device; step 9 is kept"):
        checkpoint.save(workdir, state_of(12))
    assert sorted(p.name for p in (workdir / checkpoint.LAST).iterdir()) == ["5", "9"]


def test_errors_that_are_none_of_storage_pass(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoint.save(tmp_path, state_of(3), {"a": {1, 2}})
    with pytest.raises(ValueError, match="zero size"):
        # Elsewhere: a thread of the save before may still write.
        checkpoint.save(tmp_path / "b", state_of(3, batch_stats=jnp.zeros((0, 2))))
    assert checkpoint.steps(tmp_path) == checkpoint.steps(tmp_path / "b") == []


def fill_the_disk(mount, pages):
    """Saves with more and more room on a disk of its own; prints what each save said, as JSON.

    First without the look at the free space, so that Orbax is cut off at each of its writes.
    """
    mount, old, new = Path(mount), state_of(1), state_of(2)
    size, check_space = os.statvfs(mount).f_frsize, checkpoint._check_space

    def attempt(left):
        checkpoint.save(mount, old, {"step": 1})
        with (mount / "filler").open("wb") as file:
            file.write(bytes(os.statvfs(mount).f_bavail * size - left))
        error, expected = None, new
        try:
            checkpoint.save(mount, new, {"step": 2})
        except OSError as caught:
            error, expected = str(caught), old
        same = bits(checkpoint.restore(mount, new, print_line=print).state) == bits(expected)
        (mount / "filler").unlink()
        checkpoint.save(mount, new, {"step": 2})
        after = bits(checkpoint.restore(mount, new, print_line=print).state) == bits(new)
        print(json.dumps({"left": left, "error": error, "same": same, "after": after}))

    checkpoint._check_space = lambda *_: None
    for left in range(0, 96 * 1024, pages * size):
        attempt(left)
    checkpoint._check_space = check_space
    for left in (0, 64 * 1024, 128 * 1024, 512 * 1024):
        attempt(left)
    subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
    try:
        checkpoint.save(mount, old)
    except OSError as error:
        print(json.dumps(str(error)))


NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def in_a_small_disk(folder, megabytes, call):
    """What a function of this file prints, called with a disk of its own as first argument."""
    folder.mkdir()
    mount = f'mount -t tmpfs -o size={megabytes}m none "$0"'
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed")
    tried = subprocess.run([*NAMESPACE, "sh", "-c", mount, folder], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no disk of its own: {tried.stderr.strip()}")
    script = f"import sys, test_checkpoint; test_checkpoint.{call}"
    shell = f'{mount} && exec "$1" -c "$2" "$0"'
    return subprocess.run(
        [*NAMESPACE, "sh", "-c", shell, folder, sys.executable, script],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("pages", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_disk_that_is_full(tmp_path, pages):
    result = in_a_small_disk(tmp_path / "disk", 2, f"fill_the_disk(sys.argv[1], {pages})")
    assert result.returncode == 0, result.stderr[-2000:]
    *reports, read_only = map(json.loads, result.stdout.splitlines())
    path = tmp_path / "disk" / checkpoint.LAST
    reason = "No space left on device"
    assert read_only == f"cannot save {path / '1'}: Read-only file system; step 2 is kept"
    errors = {report["left"] for report in reports if report["error"]}
    assert len(errors) > 12 / pages
    assert 512 * 1024 not in errors
    for report in reports:
        assert report["error"] in (None, f"cannot save {path / '2'}: {reason}; step 1 is kept")
        assert report["same"]
        assert report["after"]


# Several processes.


def one_of_two(index, port, folder):
    """What both processes of a run see; the second has no file of it."""
    jax.distributed.initialize(f"localhost:{port}", 2, index)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec())
    workdir, told = Path(folder) / str(index), []

    def line(kind, act):
        try:
            act()
        except kind as error:
            return one_line(error)
        raise AssertionError("no error")

    def on_both(step):
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, place, lambda i: np.asarray(x)[i]),
            state_of(step),
        )

    like = on_both(0)
    lines = [line(checkpoint.NoCheckpoint, lambda: checkpoint.restore(workdir, like))]
    for step in (5, 9, 12):
        checkpoint.save(workdir, on_both(step), {"step": step})
    if index == 0:
        files(workdir, 12)["progress/metadata"].write_bytes(b"{}")
    found = checkpoint.restore(workdir, like, print_line=told.append)
    assert bits(found.state) == bits(state_of(9))
    assert found.progress == {"step": 9}
    assert all(leaf.sharding == place for leaf in jax.tree.leaves(found.state))
    assert len(told) == (1 if index == 0 else 0)
    checkpoint.forget_after(workdir, 5, checkpoint.LAST)
    assert checkpoint.steps(workdir) == [5]
    other = jax.eval_shape(lambda: state_of(0, classes=9))
    lines.append(line(ValueError, lambda: checkpoint.restore(workdir, other)))
    if index == 0:
        (workdir / checkpoint.BEST).touch()
    lines.append(line(OSError, lambda: checkpoint.save(workdir, like, folder=checkpoint.BEST)))
    assert workdir.exists() == (index == 0)
    print(json.dumps(lines))


def test_two_processes(tmp_path):
    """The first writes and reads; both have the same state, and the same errors."""
    script = "import sys, test_checkpoint as t; t.one_of_two(int(sys.argv[1]), *sys.argv[2:])"
    port, here = str(free_port()), str(Path(__file__).parent)
    path = os.pathsep.join([here, *sys.path])
    programs = [("-c", script, str(index), port, tmp_path) for index in range(2)]
    with started(programs, tmp_path / "out", devices=1, PYTHONPATH=path) as processes:
        first, second = map(json.loads, finish(processes, tmp_path / "out", 120))
    assert first == second
    path = tmp_path / "0"
    assert first[0].startswith(f"no checkpoint in {path / checkpoint.LAST}")
    assert first[1].endswith("params/head/kernel has the shape (8, 4), expected (8, 9)")
    assert first[2] == (
        f"cannot save {path / checkpoint.BEST / '0'}: Not a directory; no step is kept"
    )
