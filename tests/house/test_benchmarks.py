"""The benchmark script runs, also without PyTorch, and writes what it measured."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "run.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=300
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
