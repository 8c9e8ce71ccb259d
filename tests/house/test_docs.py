"""Every example runs: doctests of all modules, and the README's code with its printed results."""

import doctest
import importlib
import io
import pkgutil
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import dh2l_jax

ROOT = Path(__file__).parents[2]
MODULES = [m.name for m in pkgutil.walk_packages(dh2l_jax.__path__, "dh2l_jax.")]
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_the_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_examples_of_the_readme():
    blocks = BLOCK.findall((ROOT / "README.md").read_text("utf-8"))
    assert len(blocks) >= 5
    namespace = {}
    for code, expected in blocks:
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), namespace)
        assert printed.getvalue() == expected, code


def test_readme_names_every_file_and_symbol_that_exists():
    text = (ROOT / "README.md").read_text("utf-8")
    for path in re.findall(r"`(dh2l_jax/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
    for command in ("pip install -e . && python train.py", "pip install -e '.[test]' && pytest"):
        assert f"```bash\n{command}\n```" in text
