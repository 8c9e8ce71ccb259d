"""Nothing that comes from a file is executed: no call that could, and none that happens."""

import ast
import builtins
import contextlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from support.pth_files import MAKERS

import train
from dh2l_jax.data.catalog import load
from dh2l_jax.data.prepared.originals.idx import read_array
from dh2l_jax.data.store import cache
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.models.weights import pickles
from dh2l_jax.models.weights.formats import read_weights
from dh2l_jax.models.weights.pth import read_state_dict
from dh2l_jax.training.config import sections
from dh2l_jax.training.run import checkpoint, manifest, records
from dh2l_jax.training.step.state import TrainState

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "train.py", *sorted((ROOT / "dh2l_jax").rglob("*.py"))]

# Modules that unpickle, evaluate or start programs, and names that do so or that unpack to disk.
MODULES = {
    "cloudpickle", "code", "codeop", "ctypes", "dill", "imp", "joblib", "marshal",
    "multiprocessing", "pickle", "_pickle", "pty", "runpy", "shelve", "subprocess", "torch", "yaml",
}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
METHODS = {
    "extract", "extractall", "unpack_archive", "system", "popen", "execv", "execve", "spawnv",
    "posix_spawn", "fork", "import_module", "load_module", "exec_module", "read_pickle",
}  # fmt: skip
# Where one of these stands, and why it is harmless.
ALLOWED = {
    ("dh2l_jax/models/weights/pickles.py", "pickle"): "its unpickler, narrowed, see below",
    ("dh2l_jax/training/config/sections.py", "runpy"): "a --config file is the user's own program",
    ("dh2l_jax/checks.py", "import_module"): "package.module:function is the user's own program",
    ("dh2l_jax/models/__init__.py", "import_module"): "its own heads for NNX, by name",
    ("dh2l_jax/hierarchy/__init__.py", "import_module"): "its own parts that need JAX, by name",
    ("dh2l_jax/__init__.py", "import_module"): "its own parts, by a fixed list of names",
    ("dh2l_jax/commands/__init__.py", "import_module"): "one of its commands, by a fixed list",
    ("dh2l_jax/data/prepared/read.py", "import_module"): "builders that FACTS names",
    (
        "dh2l_jax/data/prepared/originals/matlab.py",
        "subprocess",
    ): "our own reader of tables, with limits",
    ("dh2l_jax/data/mini/make.py", "subprocess"): "made the embedded file, once",
    ("dh2l_jax/experiments/trainers.py", "multiprocessing"): "starts itself, for runs side by side",
    ("dh2l_jax/training/host/allocator.py", "ctypes"): "one setting of the C library's allocator",
    ("dh2l_jax/training/host/processes.py", "ctypes"): "the exit code where a process is lost",
}


def unsafe(tree):
    """What a module imports or calls of the lists above."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from MODULES & {name.name.split(".")[0] for name in names}
            case ast.ImportFrom(module=module, names=names):
                yield from MODULES & {module.split(".")[0]}
                yield from METHODS & {name.name for name in names}
            case ast.Call(func=ast.Name(id=name)) if name in CALLS:
                yield name
            case ast.Call(func=ast.Attribute(attr=name)) if name in METHODS:
                yield name
            case ast.Call(func=ast.Attribute(value=ast.Name(id="np" | "jnp"), attr="load")):
                if "allow_pickle=False" not in ast.unparse(node):
                    yield "np.load"
            case ast.keyword(arg="allow_pickle" | "shell", value=value):
                if ast.unparse(value) != "False":
                    yield node.arg


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_call_executes_what_a_file_holds(path):
    name = path.relative_to(ROOT).as_posix()
    found = set(unsafe(ast.parse(path.read_text("utf-8"))))
    assert found == {call for file, call in ALLOWED if file == name}


def test_every_exception_has_its_file():
    assert {name for name, _ in ALLOWED} <= {p.relative_to(ROOT).as_posix() for p in SOURCES}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle", "pickle"),
        ("from torch.serialization import load", "torch"),
        ("def f():\n    import marshal.x as y", "marshal"),
        ("x = eval('1')", "eval"),
        ("tarfile.open(p).extractall()", "extractall"),
        ("from shutil import unpack_archive", "unpack_archive"),
        ("np.load(p)", "np.load"),
        ("np.load(p, allow_pickle=True)", "np.load"),
        ("read(p, allow_pickle=flag)", "allow_pickle"),
        ("run(p, shell=True)", "shell"),
        ("os.system(p)", "system"),
    ],
)
def test_the_search_finds(code, found):
    assert found in set(unsafe(ast.parse(code)))


# What happens when files are read: Python tells of every unpickled name and every program.

TOLD = (
    "pickle.find_class",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
)
told = None


def hook(event, arguments):
    if told is not None and event in TOLD:
        told.append((event, arguments))


sys.addaudithook(hook)


@pytest.fixture
def events():
    """What is unpickled or started while a test runs."""
    global told
    told = []
    yield told
    told = None


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_names_in_weights_are_looked_up_not_imported(events, tmp_path, maker):
    """Even those that a state dict needs; and what stands for them is our own, or a dtype."""
    (tmp_path / "file").write_bytes(maker({"a": np.ones(3), "b.weight": np.ones((2, 2))}))
    assert list(read_state_dict(tmp_path / "file")) == ["a", "b.weight"]
    assert not events
    for (module, _), value in pickles._GLOBALS.items():
        assert module.split(".")[0] in ("collections", "torch")
        assert isinstance(value, np.dtype) or value.__module__ == pickles.__name__


def test_every_other_name_and_opcode_is_refused():
    unpickler = pickles._Unpickler(pickles.Cursor(memoryview(b""), lambda pid: pid))
    names = [(module.__name__, name) for module in (builtins, os, pickle) for name in vars(module)]
    for module, name in [*names, ("collections", "deque"), ("torch", "load"), ("", "")]:
        with pytest.raises(pickles.PthError, match="refused"):
            unpickler.find_class(module, name)
    # What imports, calls or sets attributes by other ways than those that are narrowed.
    for name in ("INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "DICT", "LIST"):
        with pytest.raises(pickles.PthError, match="refused the pickle opcode"):
            unpickler.dispatch[getattr(pickle, name)[0]](unpickler)
    for opcode in (pickle.REDUCE, pickle.NEWOBJ, pickle.BUILD, pickle.EMPTY_DICT):
        assert unpickler.dispatch[opcode[0]].__module__ == pickles.__name__


class Hostile:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def payloads(path):
    """Files that make another one when they are unpickled: pickles, and an array of objects."""
    pickles = [pickle.dumps({"a": Hostile(path)}, protocol) for protocol in range(6)]
    beside = path.with_name("array.npy")
    np.save(beside, np.array([Hostile(path)]), allow_pickle=True)
    return [*pickles, beside.read_bytes()]


def test_the_hook_sees_an_unpickled_name(events, tmp_path):
    pickle.loads(payloads(tmp_path / "made")[0])
    assert (tmp_path / "made").exists()
    assert {event for event, _ in events} == {"pickle.find_class"}


READERS = {
    "tree": Hierarchy.from_csv,
    "idx": lambda file: read_array(file, ndim=1),
    "weights": read_state_dict,
    "safetensors": lambda file: read_weights(file.rename(file.with_suffix(".safetensors"))),
    "config": lambda file: sections.from_dict(json.loads(file.read_bytes())),
    "folder": lambda file: load("folder", data_dir=file.parent, csv=file),
    "fashion_mnist": lambda file: load("fashion_mnist", data_dir=file.parent),
    "metrics": records.read_records,
}


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_unpickles(events, tmp_path, reader):
    names = ["file", "train-images-idx3-ubyte", cache.MANIFEST]
    for data in payloads(tmp_path / "made"):
        for name in names:
            (tmp_path / name).write_bytes(data)
        with contextlib.suppress(ValueError, OSError):  # noise may be a file of one broken line
            READERS[reader](tmp_path / "file")
    assert not (tmp_path / "made").exists()
    assert not events


def test_no_file_of_a_run_is_unpickled(events, tmp_path, capsys):
    for data in payloads(tmp_path / "made"):
        for name in ("config.json", "result.json", "metrics.jsonl"):
            (tmp_path / name).write_bytes(data)
            for extra in ([], ["--eval-only"], ["--test"]):
                assert train.main(["--workdir", str(tmp_path), *extra]) == 2
                assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "made").exists()
    assert not events


def test_no_file_of_a_checkpoint_is_unpickled(tmp_path):
    """In a process of its own: where Orbax stumbles, it prints from several threads."""
    script = (
        "import pathlib, sys; sys.path.append('..'); import test_security\n"
        "test_security.restore_hostile(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert found.stdout.splitlines()[-1:] == ["more than 3 files read, nothing told"], found.stderr


def restore_hostile(folder):
    """Puts a pickle in the place of each file of a checkpoint; the checksums fit."""
    global told
    told, zero = [], jnp.zeros(())
    state = TrainState(
        step=jnp.int32(3), params={"w": jnp.ones(5)}, batch_stats={}, opt_state=(), key=zero,
        rate=zero,
    )  # fmt: skip
    step = checkpoint.save(folder, state, {"epoch": 1})
    files = [file for file in step.rglob("*") if file.is_file() and file.name != manifest.NAME]
    payload, refused = payloads(folder / "made")[2], 0
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(payload)
        manifest.write(step)
        try:
            checkpoint.restore(folder, state)
        except Exception:  # the tests of checkpoints ask which
            refused += 1
        file.write_bytes(whole)
    assert refused > 3
    assert not told
    assert not (folder / "made").exists()
    print("more than 3 files read, nothing told")
