"""Every way to fail, run as a user runs it: a process, its limits, streams and signals.

Each ends with one line on stderr, no traceback, and the exit code of docs/guide/commands.md. What a
command line or a config may get wrong beyond that is in `test_bad_input.py`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAIN, DH2L = f"{sys.executable} {ROOT}/train.py", f"{sys.executable} -m dh2l_jax"
SMALL = "--epochs 1 --data.fraction 0.01 --batch_size 8 --model.name resnet8"
# A module of this name, found first, in place of one that a command imports.
# The handler is Python's own, which it does not set where a shell runs the tests in background.
INTERRUPTED = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
os.kill(os.getpid(), signal.SIGINT)
"""
EXHAUSTED = "raise MemoryError"
THREADS = 'raise RuntimeError("can\'t start new thread")'

# What bash runs → exit code, a piece of the line; none where nothing went wrong. `reader`: stdout
# is a pipe that nobody reads. These end before JAX is imported.
CHEAP = {
    # Streams.
    f"{DH2L} --help >&reader": (
        141,
        "dh2l: error: the output can't be written: its reader is gone",
    ),
    f"{DH2L} tables --help >&reader": (141, "its reader is gone"),
    f"{TRAIN} --help >&reader": (141, "train.py: error: the output can't be written: its reader"),
    f"{DH2L} --help >/dev/full": (4, "No space left on device"),
    f"{TRAIN} --help >/dev/full": (4, "No space left on device"),
    f"{TRAIN} --help >&-": (0, ""),
    f"{TRAIN} --help <&- >&- 2>&-": (0, ""),
    f"{TRAIN} --epochs 0 >&-": (2, "epochs must be ≥ 1, found 0"),
    f"{TRAIN} --epochs 0 2>&-": (2, ""),
    f"{TRAIN} --epochs 0 2>/dev/full": (2, ""),
    f"PYTHONIOENCODING=ascii {TRAIN} --help": (0, ""),
    f"PYTHONIOENCODING=ascii {TRAIN} --epochs 0": (2, r"epochs must be \u2265 1, found 0"),
    f"LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {TRAIN} --help": (0, ""),
    # Signals and limits while modules are imported.
    f"PYTHONPATH=tyro:$PYTHONPATH {TRAIN}": (130, "train.py: stopped by SIGINT"),
    f"PYTHONPATH=tyro:$PYTHONPATH {DH2L} train": (130, "dh2l train: stopped by SIGINT"),
    f"PYTHONPATH=jax:$PYTHONPATH {TRAIN} {SMALL}": (130, "train.py: stopped by SIGINT"),
    f"PYTHONPATH=rich:$PYTHONPATH {DH2L} data check .": (130, "dh2l data: stopped by SIGINT"),
    f"PYTHONPATH=jax:$PYTHONPATH {DH2L} tables table2": (130, "dh2l tables: stopped by SIGINT"),
    f"PYTHONPATH=memory:$PYTHONPATH {TRAIN}": (6, "out of memory, threads or open files: MemoryEr"),
    f"PYTHONPATH=threads:$PYTHONPATH {TRAIN}": (6, "files: can't start new thread"),
    f"ulimit -v 1000000; {TRAIN} {SMALL}": (6, "ulimit -v is 1000000 (kB), JAX needs 2621440"),
    f"ulimit -n 20; {TRAIN} {SMALL}": (6, "ulimit -n is 20 (open files), Orbax needs 64"),
    # Folders.
    f"env -u HOME {TRAIN} --epochs 0": (2, "epochs must be ≥ 1"),
}
# These import JAX, a few seconds each; one that begins to train takes some more.
COSTLY = {
    f"{TRAIN} --workdir gs://bucket/run": (
        2,
        "workdir gs:/bucket/run: expected a folder of this m",
    ),
    f"{TRAIN} --workdir $'\\xff'": (2, "Orbax takes no name that is not UTF-8"),
    f"{TRAIN} --workdir /proc/run {SMALL}": (2, "/proc/run"),
    f"{TRAIN} --workdir run --profile /proc/p {SMALL}": (4, "/proc/p"),
    f"{TRAIN} --workdir run {SMALL} >&reader": (141, "its reader is gone"),
    f"{TRAIN} --workdir run {SMALL} >&-": (0, ""),
    f"PYTHONIOENCODING=ascii {TRAIN} --workdir run {SMALL}": (0, ""),
    f"ulimit -f 100; {TRAIN} --workdir run {SMALL}": (
        4,
        "cannot save run/checkpoints/7: File too ",
    ),
    f"ulimit -n 64; {TRAIN} --workdir run {SMALL}": (0, ""),
    f"ulimit -v 3000000; {TRAIN} --workdir run --epochs 1 --batch_size 6000": (6, "out of memory"),
    f"{DH2L} data check '~nosuchuser/x'": (2, "no home folder: HOME is not set, or ~ names an unk"),
    f"{DH2L} tables table2 --data '~nosuchuser/x' --dry-run": (2, "no home folder"),
    f"{DH2L} tables table2 --dry-run >&reader": (141, "its reader is gone"),
    f"{DH2L} tables table-fashion --out /proc/tables": (2, "/proc/tables"),
    f"HOME=/proc {DH2L} train --data.name folder --data.data_dir images": (2, "images"),
}


@pytest.fixture
def planted(tmp_path):
    for folder, name, text in (
        ("tyro", "tyro", INTERRUPTED),
        ("jax", "jax", INTERRUPTED),
        ("rich", "rich", INTERRUPTED),
        ("memory", "tyro", EXHAUSTED),
        ("threads", "tyro", THREADS),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.py").write_text(text)
    return tmp_path


def ends(folder, script):
    """Exit code and stderr of what bash runs in a folder."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "COLUMNS": "100"}
    env.pop("XLA_FLAGS", None)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = subprocess.run(
            ["bash", "-c", script.replace("&reader", f"&{writer}")],
            cwd=folder,
            env=env,
            pass_fds=[writer],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        os.close(writer)
    return process.returncode, process.stderr


def check(folder, script, code, piece):
    found, stderr = ends(folder, script)
    assert (found, stderr.count("\n")) == (code, 1 if piece else 0), stderr
    assert piece in stderr
    assert "Traceback" not in stderr


def name(script):
    return script.replace(sys.executable, "python").replace(f"{ROOT}/", "")


@pytest.mark.skipif(sys.platform != "linux", reason="bash, /dev/full and limits as Linux has them")
@pytest.mark.parametrize("script", CHEAP, ids=name)
def test_one_line_and_a_code(planted, script):
    check(planted, script, *CHEAP[script])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="bash, /proc and limits as Linux has them")
@pytest.mark.parametrize("script", COSTLY, ids=name)
def test_one_line_and_a_code_of_what_imports_jax(planted, script):
    check(planted, script, *COSTLY[script])
