"""Every example runs: doctests of all modules, and the code of the README and the site's pages."""

import doctest
import importlib
import importlib.util
import io
import pkgutil
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import jax
import pytest

import dh2l_jax
from dh2l_jax.commands import (
    arguments,
    compare,
    data,
    diversity,
    evaluate,
    export,
    predict,
    report,
    tables,
    train,
)  # fmt: skip
from dh2l_jax.training.config import Config
from dh2l_jax.training.config.options import flat

ROOT = Path(__file__).parents[2]
MODULES = [m.name for m in pkgutil.walk_packages(dh2l_jax.__path__, "dh2l_jax.")]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
TEXTS = dict(zip(NAMES, (page.read_text("utf-8") for page in PAGES), strict=True))
NOTEBOOKS = sorted((ROOT / "docs/examples").glob("*.ipynb"))
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_it_shows(path, tmp_path, monkeypatch):
    page = _script("docs/hooks.py").notebook_page(path)
    monkeypatch.setitem(TEXTS, path.stem, page)
    test_code_of_a_page_prints_what_it_says(path.stem, tmp_path, monkeypatch)
    assert page.count("```python") == len(PYTHON.findall(page)) >= 3


def test_commands_of_the_pages_have_options_and_values_that_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    for command, *words in (command for text in TEXTS.values() for command in _commands(text)):
        words = [word for word in words if word != "--help"]
        if command == "train":
            train.read_config(arguments.parse(words, "dh2l train"))
        elif command == "tables":
            tables.parse_arguments(words)
        elif command == "compare":
            compare.parse_arguments(words)
        elif command == "diversity":
            diversity.parse_arguments(words)
        elif command == "predict":
            predict.parse_arguments(words)
        elif command == "evaluate":
            if words[0].startswith("-"):
                evaluate.parse_arguments(words)
        elif command == "report":
            report.parse_arguments(words)
        elif command == "export":
            export.parse_arguments(words)
        else:
            assert (command == "data" and words[0] in data.COMMANDS) or command == "--help"


def test_readme_has_its_two_commands_and_is_short():
    for command in ("pip install -e . && python train.py", "pip install -e '.[test]' && pytest"):
        assert f"```bash\n{command}\n```" in TEXTS["README.md"]
    assert TEXTS["README.md"].count("\n") <= 140


@pytest.mark.parametrize("name", NAMES)
def test_files_that_a_page_names_exist(name):
    for path in re.findall(r"`((?:dh2l_jax|tests|docs|configs|benchmarks)/[\w/.]+)`", TEXTS[name]):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([\w./]+)(?:#[\w.-]+)?\)", TEXTS[name]):
        path = (ROOT / name).parent / link
        assert path.exists() or path.with_suffix(".ipynb").exists(), link  # a notebook has a page


def test_page_of_options_lists_every_one_with_a_sentence():
    page = _script("docs/hooks.py").on_page_markdown(TEXTS["docs/guide/options.md"])
    rows = {
        row[0]: row[1:] for row in re.findall(r"^\| `(\S+)` \|(.*)\|(.*)\| (.+) \|$", page, re.M)
    }
    assert rows.keys() == dict(flat(Config())).keys()
    assert rows["optim.lr"] == (" number > 0 ", " `0.1` ", "highest learning rate.")


def test_page_of_regularizers_has_every_one_twice():
    """In the table, which is made of the code, and among what each is like."""
    page = TEXTS["docs/ideas/field.md"]
    table = _script("docs/hooks.py").on_page_markdown("<!-- regularizers -->")
    names = re.findall(r"^\| `(\w+)`(?:<br>`.*?`)* \| ", table, re.M)
    notes = page[page.index("## What each is like") :]
    told = [name for cell in re.findall(r"^\| (`.+?) \|", notes, re.M) for name in cell.split(", ")]
    assert [*dh2l_jax.REGULARIZERS] == names
    assert sorted(told) == sorted(f"`{name}`" for name in names)


def test_pictures_are_drawn_and_show_what_they_say(tmp_path):
    for name in ("spheres", "profiles"):
        script = _script(f"docs/img/{name}.py")
        assert script.main(tmp_path).read_text("utf-8").startswith("<?xml")
        assert (ROOT / f"docs/img/{name}.svg").stat().st_size < 150_000
    spheres = _script("docs/img/spheres.py")
    before = spheres.start()
    assert spheres.nearest(before) < 5 < 65 < spheres.nearest(jax.jit(spheres.descend)(before))


def _commands(text: str) -> Iterator[list[str]]:
    """The words after `dh2l` of every command in the bash blocks of a page."""
    for line in "\n".join(BASH.findall(text)).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "dh2l" in words:
            yield words[words.index("dh2l") + 1 :]
        elif "train.py" in words:
            yield ["train", *words[words.index("train.py") + 1 :]]


def _script(path: str):
    """A script that lies outside of the package, as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
