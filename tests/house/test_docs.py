"""Every example runs: doctests of all modules, and the code of the README and the site's pages."""

import doctest
import importlib
import importlib.util
import io
import pkgutil
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import dh2l_jax
from dh2l_jax.training.config import Config, override
from dh2l_jax.training.config.options import flat

ROOT = Path(__file__).parents[2]
MODULES = [m.name for m in pkgutil.walk_packages(dh2l_jax.__path__, "dh2l_jax.")]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
TEXTS = dict(zip(NAMES, (page.read_text("utf-8") for page in PAGES), strict=True))
PYTHON = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
BASH = re.compile(r"```bash\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_the_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", [name for name in NAMES if PYTHON.search(TEXTS[name])])
def test_code_of_a_page_prints_what_it_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for code, expected in PYTHON.findall(TEXTS[name]):
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(code, name, "exec"), namespace)
        assert printed.getvalue() == expected, code
