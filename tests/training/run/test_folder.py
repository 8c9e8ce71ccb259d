"""The files of a run: whole or not at all, and what a command says of the ways in which it ends."""

import csv
import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import train
from dh2l_jax.commands import fail
from dh2l_jax.files import write_atomically
from dh2l_jax.training.config import Config, DistributedConfig, OptimConfig
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.run import folder as run_folder
from dh2l_jax.training.run.console import line_printer
from dh2l_jax.training.run.lock import Lock
from dh2l_jax.training.run.records import (
    append_record,
    keep_records,
    read_records,
    write_confusion,
    write_text,
)

RECORDS = [{"epoch": 1, "step": 5, "J": 0.1 + 0.2}, {"epoch": 2, "step": 10, "ü": "走"}]


def write_records(path, records=RECORDS):
    for record in records:
        append_record(path, record)


@pytest.mark.parametrize("end", ["", "{", '{"epoch": 3, "step": 15}', "\xff"])
@pytest.mark.parametrize("step", [0, 4, 5, 9, 10, 99])
def test_records_of_later_steps_and_half_lines_are_dropped(tmp_path, end, step):
    path = tmp_path / "metrics.jsonl"
    keep_records(path, step)
    assert read_records(path) == []
    assert not path.exists(), "no records are no file"
    write_records(path)
    with path.open("ab") as file:
        file.write(end.encode("latin-1"))
    assert read_records(path) == RECORDS
    keep_records(path, step)
    kept = [record for record in RECORDS if record["step"] <= step]
    assert read_records(path) == kept
    append_record(path, {"step": 99})
    assert read_records(path) == [*kept, {"step": 99}]


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "line 2 is not JSON"), ("[1]", r"line 2: expected a JSON object, found \[1\]")],
)
def test_a_damaged_record_is_named(tmp_path, line, message):
    path = tmp_path / "metrics.jsonl"
    write_records(path, RECORDS[:1])
    with path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match=message):
        keep_records(path, 3)
    path.write_text('{"epoch": 1}\n')
    with pytest.raises(ValueError, match="line 1: expected the number of a step, found none"):
        keep_records(path, 3)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_leaves_the_file_before(tmp_path, monkeypatch, name):
    path = tmp_path / "result.json"
    write_text(path, "before")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync", full) if name == "fsync" else (Path, "replace", full)))
    with pytest.raises(OSError, match=r"result\.json cannot be written: No space left on device$"):
        write_text(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_planted_links_are_not_followed(tmp_path):
    """Under the names that other programs would give their temporary files, and under our own."""
    precious, folder = tmp_path / "precious", tmp_path / "run"
    precious.write_text("letters")
    folder.mkdir()
    names = ["config.json", "metrics.jsonl", "result.json", "confusion.csv", "SHA256SUMS"]
    for name in names:
        (folder / f"{name}.tmp").symlink_to(precious)
        (folder / f".{name}.tmp").symlink_to(precious)
        (folder / name).symlink_to(precious)
        write_text(folder / name, "ours")
        assert not (folder / name).is_symlink()
    (folder / ".0123456789abcdef.part").symlink_to(precious)
    with run_folder.opened(tmp_path / "new", Config()):
        pass
    assert precious.read_text() == "letters"
    assert len(list(folder.iterdir())) == 3 * len(names) + 1, "nothing is left behind"


def test_a_file_is_made_as_the_umask_says(tmp_path):
    (tmp_path / "opened").open("w").close()
    write_text(tmp_path / "written", "")
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, RuntimeError])
def test_content_that_cannot_be_made_leaves_the_file_before(tmp_path, error):
    def content(file):
        file.write(b"half")
        raise error("no more")

    path = tmp_path / "file"
    write_atomically(path, b"before")
    with pytest.raises(error):
        write_atomically(path, content)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


def test_a_full_disk_is_named_with_what_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(OSError, match=r"No space left on device; no step is kept$") as error,
        checkpoint.tell_what_is_kept(tmp_path),
    ):
        append_record(path, {"step": 1})
    assert str(path) in str(error.value)


def test_a_run_goes_on_with_its_own_options_alone(tmp_path):
    folder, config = tmp_path / "run", Config(seed=3)
    with run_folder.opened(folder, config):
        assert run_folder.is_run(folder)
        assert not run_folder.is_finished(folder)
        assert run_folder.read_config(folder) == config
    with run_folder.opened(folder, Config(seed=3, on_nan="rollback", checkpoint_every=7)):
        pass
    with run_folder.opened(folder, Config(seed=3, distributed=DistributedConfig(auto=True))):
        pass
    assert run_folder.read_config(folder) == config
    other = Config(seed=3, optim=OptimConfig(lr=0.3))
    with pytest.raises(ValueError, match=r"optim\.lr is 0\.1 in the saved config, 0\.3"):
        run_folder.refuse_foreign_folder(folder, other)


def test_names_of_classes_are_text_in_a_spreadsheet_and_exact_in_json(tmp_path):
    names = ["=cmd|'/c calc'!A0", "+1", "-a", "@SUM(1)", "\t=1", "\r=1", " =1", "＝1", "a=b", "ü"]
    rows = np.arange(100).reshape(10, 10).tolist()
    scores = {"confusion": rows, "confusion_names": names, "images": 1}
    write_confusion(tmp_path, scores)
    assert scores == {"images": 1}
    with (tmp_path / "confusion.csv").open(encoding="utf-8", newline="") as file:
        (_, *header), *lines = csv.reader(file)
    assert header == [f"'{name}" for name in names[:8]] + names[8:]
    assert [line[0] for line in lines] == header
    assert [list(map(int, line[1:])) for line in lines] == rows
    exact = json.loads((tmp_path / "confusion.json").read_text("utf-8"))
    assert exact == {"classes": names, "confusion": rows}


def test_no_name_steers_a_terminal(capsys):
    name = "a\x1b[2J\rb\u202ec"
    line_printer(Console(file=sys.stdout, force_terminal=True, highlight=False))(
        f"run {name} [bold]x"
    )
    fail("dh2l", ValueError(f"no config file {name}"))
    shown = capsys.readouterr()
    assert shown.out == "run a\\x1b[2J\\rb\\u202ec [bold]x\n"
    assert shown.err == "dh2l: error: no config file a\\x1b[2J b\\u202ec\n"


def test_a_killed_start_is_no_run(tmp_path):
    """What it leaves is its own; anything else in a folder keeps a run out of it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".0123456789abcdef.part").write_text("{")
    (folder / "letter.txt").touch()
    for ask in (run_folder.refuse_foreign_folder, lambda *a: run_folder.opened(*a).__enter__()):
        with pytest.raises(ValueError, match="exists already and is never overwritten"):
            ask(folder, Config())
    (folder / "letter.txt").unlink()
    run_folder.refuse_foreign_folder(folder, Config())
    with run_folder.opened(folder, Config()):
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "config.json"]


def test_a_second_run_in_a_folder_is_refused(tmp_path, capsys):
    folder = tmp_path / "run"
    with (
        run_folder.opened(folder, Config()),
        pytest.raises(ValueError, match="is in use by process"),
    ):
        run_folder.opened(folder, Config()).__enter__()
    (folder / "config.json").unlink()
    options = ["--set", "model.name=resnet8", "--set", "data.fraction=0.1", "--workdir"]
    with Lock(folder / ".lock"):
        assert train.main([*options, str(folder)]) == 2
    assert capsys.readouterr().err == (
        f"train.py: error: {folder} is in use by process {os.getpid()} on {os.uname().nodename}: "
        "wait for it or choose another folder\n"
    )
    assert [path.name for path in folder.iterdir()] == [".lock"]
