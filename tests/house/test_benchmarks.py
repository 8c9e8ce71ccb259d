"""The benchmark scripts run, also without PyTorch or a GPU, and write what they found."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def run(*arguments, script="run.py"):
    return subprocess.run(
        [sys.executable, SCRIPTS / script, *arguments], capture_output=True, text=True, timeout=300
    )


def test_one_benchmark_as_table_and_json(tmp_path):
    file = tmp_path / "figures.json"
    done = run("--only", "pipeline", "--rounds", "1", "--json", file)
    assert done.returncode == 0, done.stderr
    assert "input pipeline" in done.stdout
    figures = json.loads(file.read_text("utf-8"))
    (row,) = figures["rows"]
    assert row["value"] > 0
    assert row["met"] == (row["value"] >= row["target"])
    assert figures["machine"]["matrix product, GFLOP/s"] > 0


def test_an_unknown_benchmark_is_refused():
    done = run("--only", "pipelin")
    assert done.returncode == 2
    assert "pipeline" in done.stderr


def test_a_case_is_compiled_and_not_run(tmp_path):
    file = tmp_path / "figures.json"
    case = "sum/closed/cosine/512x4608/1"
    done = run("--platform", "cpu", "--only", case, "--json", file, script="accelerator.py")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(file.read_text("utf-8"))["rows"]
    assert row["case"] == case
    assert f"| {case} | {row['launches']} |" in done.stdout
    # W is read more than once, and its gradient written; nothing of its size is kept.
    assert row["traffic_mb"] > 3 * 512 * 4608 * 4 / 1e6
    assert 0 < row["temporaries_mb"] < 0.1


def test_an_unknown_case_is_refused():
    done = run("--platform", "cpu", "--only", "sum/closed", script="accelerator.py")
    assert done.returncode == 2
    assert "sum/closed/cosine/512x4608/1" in done.stderr
