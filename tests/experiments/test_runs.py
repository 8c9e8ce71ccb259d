"""The command of the tables: killed and resumed runs, every printed number, bad input."""

import json
import os
import shutil
import signal
import statistics as plain
import subprocess
import sys
import time

import jax
import matplotlib.figure
import matplotlib.image
import pytest
from oracle.tables import Fake, Killed, cells_of, check_reports, recompute, write_idx

from dh2l_jax.commands import tables as command
from dh2l_jax.experiments import job, trainers
from dh2l_jax.experiments.plan import tables
from dh2l_jax.experiments.plan.settings import Options, Setting, Weights, config_of
from dh2l_jax.training import loop
from dh2l_jax.training.host.programs import prepare_jax
from dh2l_jax.training.run.lock import Lock


def run(out, *arguments, trainer=None):
    return command.main([*arguments, "--out", str(out)], trainer)


@pytest.fixture
def no_picture(monkeypatch):
    """Drawing takes longer than all else."""
    monkeypatch.setattr(job.TableJob, "_draw", lambda self: None)


@pytest.mark.parametrize(
    ("name", "rows"), [("table1", []), ("table2", ["d_am"]), ("table4", []), ("table-fashion", [])]
)
def test_a_table(tmp_path, capsys, name, rows):
    trainer, plan = Fake(), tables.table(name)
    arguments = [name, "--seeds", "0", "1", "2", *(["--rows", *rows] if rows else [])]
    plan = plan.only(rows or plan.rows)
    assert run(tmp_path, *arguments, trainer=trainer) == 0
    assert len(trainer.trained) == tables.count_runs(plan.settings, 3)
    assert len(trainer.tested) == 3 * len(plan.settings)
    text, cells = check_reports(tmp_path, name, plan, (0, 1, 2))
    assert list(cells) == [(cell.row, cell.column) for cell in plan.cells]
    assert "trial" not in text
    assert ("the paper" in text) == (name != "table-fashion")
    for label in (*plan.rows, *plan.columns):
        assert label in text.split("## Every cell")[0]
    picture = matplotlib.image.imread(tmp_path / f"{name}.png")
    assert min(picture.shape[:2]) > 300
    shown_lines = capsys.readouterr().out.splitlines()
    assert shown_lines[-1] == f"results in {tmp_path / name}.md and .csv"
    total = len(trainer.trained)
    assert shown_lines[-2].startswith(f"[{total}/{total}] ")

    again = Fake()
    assert run(tmp_path, *arguments, trainer=again) == 0
    assert (again.trained, again.tested) == ([], [])
    assert cells_of((tmp_path / f"{name}.md").read_text("utf-8")) == cells


@pytest.mark.usefixtures("no_picture")
def test_killed_again_and_again(tmp_path):
    """Each start gets two runs further and is killed in the third; no finished run is repeated."""
    arguments = ["table-fashion", "--rows", "d_am", "--seeds", "4", "2"]
    finished, starts = [], 0
    while True:
        trainer, starts = Fake(stop_at=3), starts + 1
        try:
            assert run(tmp_path, *arguments, trainer=trainer) == 0
        except Killed:
            finished += trainer.trained[:-1]
            continue
        finished += trainer.trained
        break
    assert starts == 8
    assert len(finished) == len(set(finished)) == 15
    check_reports(tmp_path, "table-fashion-seeds4-2", tables.table("table-fashion"), (4, 2))


@pytest.mark.usefixtures("no_picture")
def test_more_seeds_and_rows_reuse_what_there_is(tmp_path):
    trainer = Fake()
    for more in (
        ["--seeds", "0", "--rows", "cosine"],
        ["--seeds", "0", "1", "--rows", "cosine"],
        ["--seeds", "0", "1", "--rows", "cosine", "d_am"],
    ):
        assert run(tmp_path, "table-fashion", *more, trainer=trainer) == 0
    assert len(trainer.trained) == len(set(trainer.trained)) == 2 * 2 + 2 * (3 + 3 + 5)
    stem = "table-fashion-seeds0-1"
    _, cells = check_reports(tmp_path, stem, tables.table("table-fashion"), (0, 1))
    assert {row for row, _ in cells} == {"baseline", "l2", "cosine", "d_am"}


@pytest.mark.usefixtures("no_picture")
def test_damaged_and_foreign_files_are_trained_again(tmp_path):
    arguments = ["table-fashion", "--rows", "l2", "--seeds", "0", "1", "2"]
    first = Fake()
    assert run(tmp_path, *arguments, trainer=first) == 0
    assert len(first.trained) == 6
    files = [tmp_path / "runs" / name for name in first.trained]
    (files[0] / "result.json").write_text('{"split": "test", "accuracy": [1.0]}')
    (files[1] / "result.json").write_text('{"accuracy": [NaN]}')
    (files[2] / "config.json").write_text((files[3] / "config.json").read_text())
    (files[3] / "test.json").write_text("[]")
    shutil.rmtree(files[4])
    again = Fake()
    assert run(tmp_path, *arguments, trainer=again) == 0
    assert again.trained == [first.trained[i] for i in (0, 1, 2, 4)]
    assert again.tested == [first.trained[i] for i in (0, 1, 2, 3, 4)]
    check_reports(tmp_path, "table-fashion", tables.table("table-fashion"), (0, 1, 2))


@pytest.mark.usefixtures("no_picture")
def test_a_failed_run_is_told_and_tried_again(tmp_path, capsys):
    arguments = ["table-fashion", "--rows", "cosine", "--seeds", "0", "1"]
    error = FloatingPointError("J is not finite\nfor the whole epoch")
    trainer = Fake(stop_at=2, error=error)  # the baseline with seed 1
    assert run(tmp_path, *arguments, trainer=trainer) == 1
    assert len(trainer.trained) == 15
    assert "1 runs failed" in capsys.readouterr().err
    text = (tmp_path / "table-fashion-seeds0-1.md").read_text("utf-8")
    assert "- resnet20 baseline, seed 1: J is not finite\n" in text
    assert cells_of(text)["baseline", "E"]["n"] == "1"
    assert cells_of(text)["cosine", "E"]["n"] == "2"
    error = (tmp_path / "runs" / trainer.trained[1] / "error.txt").read_text()
    assert "FloatingPointError" in error
    assert run(tmp_path, *arguments, trainer=Fake()) == 0
    assert "## Failed runs" not in (tmp_path / "table-fashion-seeds0-1.md").read_text("utf-8")


def test_an_interrupt_leaves_a_report_and_a_hint(tmp_path, capsys):
    arguments = ["table-fashion", "--rows", "l2", "--seeds", "0", "1"]
    assert run(tmp_path, *arguments, trainer=Fake(stop_at=3, error=KeyboardInterrupt())) == 130
    assert "interrupted: the same command goes on" in capsys.readouterr().err
    cells = cells_of((tmp_path / "table-fashion-seeds0-1.md").read_text("utf-8"))
    assert [cell["n"] for cell in cells.values()] == ["2", "0"]
    assert (tmp_path / "table-fashion-seeds0-1.png").is_file()


def test_without_matplotlib_there_is_no_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = ["table-fashion", "--rows", "l2", "--seeds", "0", "1"]
    assert run(tmp_path, *arguments, trainer=Fake()) == 0
    assert "pip install 'dh2l_jax[tables]'" in capsys.readouterr().err
    check_reports(tmp_path, "table-fashion-seeds0-1", tables.table("table-fashion"), (0, 1))
    assert not (tmp_path / "table-fashion-seeds0-1.png").exists()


@pytest.mark.usefixtures("no_picture")
def test_reports_of_other_figures_have_other_names(tmp_path):
    """Each keeps its file beside the others; the defaults spelt out are the same report."""
    wholes = [
        [],
        ["--seeds", "2", "1", "0"],
        ["--seeds", *map(str, range(40))],
        ["--set", "optim.lr=0.3"],
        ["--set", "optim.lr=0.3", "--set", "epochs=2"],
        ["--set", f"data.cache_dir={tmp_path}/a"],
        ["--set", f"data.cache_dir={tmp_path}/b"],
        ["--model", "resnet8"],
        ["--budget", "0.5"],
    ]
    for number, arguments in enumerate(wholes, 1):
        arguments = ["table-fashion", "--rows", "l2", *arguments]
        assert run(tmp_path, *arguments, trainer=Fake()) == 0
        assert len(list(tmp_path.glob("*.md"))) == number
        assert len(list(tmp_path.glob("*.csv"))) == number
    arguments = ["table-fashion", "--rows", "l2", "--seeds", "0", "1", "2"]
    assert run(tmp_path, *arguments, trainer=Fake()) == 0
    assert len(list(tmp_path.glob("*.md"))) == len(wholes)
    assert {len(path.name) < 120 for path in tmp_path.glob("*.md")} == {True}


@pytest.mark.usefixtures("no_picture")
def test_a_trial_says_so(tmp_path):
    options = ["--seeds", "0", "--rows", "(l2, l2)", "--budget", "0.1"]
    assert run(tmp_path, "table4", *options, "--set", "optim.lr=0.3", trainer=Fake()) == 0
    text = (tmp_path / "table4-budget0.1-seeds0-optim.lr=0.3.md").read_text("utf-8")
    assert "# Table 4: CIFAR-100, resnet20 (trial run, budget 0.1)" in text
    assert "30 epochs on 10 % of the images of each class" in text
    assert "Changed options: optim.lr=0.3" in text
    config = json.loads(next((tmp_path / "runs").glob("*/config.json")).read_text())
    assert (config["epochs"], config["data"]["fraction"], config["optim"]["lr"]) == (30, 0.1, 0.3)


def test_the_picture_shows_the_figures(tmp_path, figures):
    assert run(tmp_path, "table2", "--seeds", "0", "1", "--rows", "d_am", trainer=Fake()) == 0
    chosen = recompute(tmp_path, (0, 1))
    (figure,) = figures
    for axes, model in zip(figure.axes, ("resnet20", "resnet110"), strict=True):
        bars = [bar.lines[0].get_xdata()[0] for bar in axes.containers]
        expected = [
            plain.fmean(last.values()) for key, (_, last, _) in chosen.items() if key[0] == model
        ]
        assert sorted(bars) == pytest.approx(sorted(expected))
        diamonds = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"]
        papers = [
            cell.paper
            for cell in tables.table("table2").only(["d_am"]).cells
            if cell.paper and cell.setting.model == model
        ]
        assert sorted(diamonds) == sorted(papers)
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == ["baseline (no l2)", "baseline_l2", "d_am"]


# The command line.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("table9", "unknown table 'table9'"),
        ("tabel2", "did you mean 'table2'?"),
        ("table-fashion --seeds -1", "--seeds must be different and ≥ 0, found -1"),
        ("table-fashion --seeds 1 1", "--seeds must be different and ≥ 0, found 1 1"),
        ("table-fashion --seeds one", "argument --seeds: invalid int value: 'one'"),
        ("table-fashion --seeds", "argument --seeds: expected at least one argument"),
        ("table-fashion --budget 0", "budget must lie in (0, 1], found 0"),
        ("table-fashion --budget nan", "budget must lie in (0, 1], found nan"),
        ("table-fashion --budget 1.5", "budget must lie in (0, 1], found 1.5"),
        ("table-fashion --rows d_amcos", "did you mean 'd_am_cos'?"),
        ("table-fashion --model resnet9", "unknown model 'resnet9': did you mean 'resnet8'?"),
        ("table-fashion --pretrained none", "table-fashion takes no --pretrained"),
        ("table-fashion --set optim.lrr=1", "did you mean 'optim.lr'?"),
        ("table-fashion --set reg.lambda_l=1", "reg.lambda_l is set by the table itself"),
        ("table-fashion --set batch_size=3", "batch_size must be a multiple of the 2 devices"),
        ("table-fashion --data NONE", "is no folder; looked there for train-images"),
        ("table2 --data NONE", "cifar100 is not prepared in"),
        ("table2 --model resnet8", "--model is for table-fashion and table-field"),
        ("table5 --data NONE", "table5 needs --pretrained, the folder of resnet18-5c106cde.pth"),
        ("table5 --data NONE --pretrained NONE", "has no resnet18-5c106cde.pth and no resnet50"),
        ("table5 --data NONE --pretrained none", "cub200 is not prepared in"),
        ("--budget 1", "the following arguments are required: TABLE"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, arguments, message):
    words = arguments.replace("NONE", str(tmp_path / "none")).split()
    code = run(tmp_path / "out", *words)
    captured = capsys.readouterr()
    assert (code, captured.out, captured.err.count("\n")) == (2, "", 1)
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(tmp_path, capsys):
    trainer = Fake()
    with Lock(tmp_path / ".lock"):
        assert run(tmp_path, "table-fashion", trainer=trainer) == 2
    assert "is in use by process" in capsys.readouterr().err
    assert trainer.trained == []


def test_help_and_plan(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path, "--help")
    assert exit_.value.code == 0
    shown_help = capsys.readouterr().out
    for name in tables.TABLES:
        assert name in shown_help
    assert run(tmp_path / "out", "table5", "--dry-run", "--seeds", "0", "1", "2") == 0
    assert "320 runs, 0 done" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


# Real training.


def test_training_for_real(tmp_path, monkeypatch, kept):
    """l2 on a few embedded images, killed and done again; the run beside it is there already."""
    arguments = ["table-fashion", "--model", "resnet8", "--budget", "0.01", "--rows", "l2"]
    arguments += ["--seeds", "0"]
    fake = Fake(stop_at=2)
    with pytest.raises(Killed):
        run(tmp_path, *arguments, trainer=fake)
    train, calls = loop.train, []

    def killed(experiment, workdir, console):
        calls.append(workdir.name)
        if len(calls) == 1:
            raise Killed
        return train(experiment, workdir, console)

    monkeypatch.setattr(loop, "train", killed)
    with pytest.raises(Killed):
        run(tmp_path, *arguments)
    assert run(tmp_path, *arguments) == 0
    assert calls == 2 * fake.trained[1:]
    stem = "table-fashion-resnet8-budget0.01-seeds0"
    text, _ = check_reports(tmp_path, stem, tables.table("table-fashion", model="resnet8"), (0,))
    assert "(trial run, budget 0.01)" in text
    assert list(kept.iterdir())


@pytest.mark.slow
def test_another_seed_compiles_nothing(tmp_path, kept):
    """Seeds hold out other images: other means, weights and orders, but the same programs."""
    prepare_jax()
    jax.clear_caches()  # what tests before have compiled would not be written to the folder
    setting, options = Setting("fashion_mnist_mini", "resnet8", "l2"), Options(budget=0.01)
    trainer, programs, results = trainers.LoopTrainer(), [], []
    for seed in (0, 1):
        config = config_of(setting, Weights(), seed, options)
        results.append(trainer.train(config, tmp_path / str(seed)))
        programs.append({path.name for path in kept.glob("*-cache")})
    assert len(programs[0]) > 10
    assert programs[1] == programs[0]
    assert results[0]["last_epoch"] != results[1]["last_epoch"]


@pytest.mark.slow
def test_a_killed_process_goes_on(tmp_path):
    """kill -9 after the first result, then the same command: every cell of one metric, on IDX."""
    data, out = tmp_path / "data", tmp_path / "out"
    write_idx(data)
    words = ["table-fashion", "--data", data, "--model", "resnet8", "--budget", "0.001"]
    words += ["--rows", "d_cos_hm", "--seeds", "0", "--out", out]
    start = [sys.executable, "-m", "dh2l_jax.experiments", *words]
    process = subprocess.Popen(start, cwd=tmp_path, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("runs/*/result.json")):
        time.sleep(0.1)
    time.sleep(1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    first = {path: path.read_bytes() for path in out.glob("runs/*/result.json")}
    assert first
    subprocess.run(start, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert all(path.read_bytes() == content for path, content in first.items())
    plan, stem = (
        tables.table("table-fashion", model="resnet8"),
        "table-fashion-full-resnet8-budget0.001-seeds0",
    )
    _, cells = check_reports(out, stem, plan, (0,))
    assert len(cells) == 5
    assert (out / f"{stem}.png").stat().st_size > 10_000
