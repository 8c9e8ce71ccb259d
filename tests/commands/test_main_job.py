"""The main job as a user runs it, with nothing but its working folder given (minutes)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_main_job_learns_and_evaluates_again(tmp_path):
    workdir = tmp_path / "run"

    def run(*arguments):
        command = [sys.executable, ROOT / "train.py", *arguments, "--workdir", workdir]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    shown = run()
    accuracy = json.loads((workdir / "result.json").read_text("utf-8"))["accuracy"]
    assert accuracy[2] > 0.82
    assert accuracy[0] > accuracy[1] > accuracy[2]
    assert f"{100 * accuracy[2]:.2f} %" in shown
    assert f"{100 * accuracy[2]:.2f} %" in run("--eval-only")
