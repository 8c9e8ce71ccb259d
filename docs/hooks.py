"""For mkdocs: what a page takes from the code, so that it can't be out of date."""

import dataclasses
import importlib.util
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dh2l_jax.regularizers import REGULARIZERS
from dh2l_jax.training.config import Config
from dh2l_jax.training.config.options import sentences, text_of

ROOT = Path(__file__).parents[1]
PICTURE = "img/every_profile.svg"


def on_files(files, config):
    """Gives each notebook of docs/examples a page, and draws the picture of all profiles."""
    from mkdocs.structure.files import File  # not where the tests read a notebook

    for path in sorted((ROOT / "docs/examples").glob("*.ipynb")):
        page = f"{notebook_page(path)}\n[This page as a notebook]({path.name})\n"
        files.append(File.generated(config, f"examples/{path.stem}.md", content=page))
    files.append(File.generated(config, PICTURE, content=_every_profile()))
    return files


def _every_profile() -> str:
    spec = importlib.util.spec_from_file_location("profiles", ROOT / "docs/img/profiles.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with tempfile.TemporaryDirectory() as folder:
        return script.every_profile(Path(folder)).read_text("utf-8")


def notebook_page(path: Path) -> str:
    """A notebook as markdown: code and what it printed in blocks, as the other pages have them."""
    return "\n".join(_cells(json.loads(path.read_text("utf-8"))["cells"]))


def _cells(cells: list) -> Iterator[str]:
    for cell in cells:
        text = "".join(cell["source"])
        yield f"{text}\n" if cell["cell_type"] == "markdown" else f"```python\n{text}\n```\n"
        printed = "".join("".join(output["text"]) for output in cell.get("outputs", ()))
        if printed:
            yield f"```text\n{printed}```\n"


def on_page_markdown(markdown: str, **_) -> str:
    """Fills in the tables of options and of regularisers, and the changelog."""
    markdown = markdown.replace("<!-- options -->", options(Config))
    markdown = markdown.replace("<!-- regularizers -->", regularizers())
    markdown = markdown.replace("<!-- every profile -->", f"![Every profile](../{PICTURE})")
    return markdown.replace("<!-- changelog -->", (ROOT / "CHANGELOG.md").read_text("utf-8"))


def regularizers() -> str:
    """The table of regularisers, of what looks at vectors, kernels and features."""
    rows = ["| name | what is minimised | looks at | cost | source |", "|---|---|---|---|---|"]
    for name, row in REGULARIZERS.items():
        options = [*row.needs, *(f"{key}={value!r}" for key, value in row.options.items())]
        named = "<br>".join(f"`{text}`" for text in (name, *options))
        rows.append(f"| {named} | `{row.formula}` | {row.looks_at} | {row.cost} | {row.source} |")
    return "\n".join(rows)


def options(section: type, prefix: str = "") -> str:
    """A table of a section of the config, followed by those of the sections in it."""
    head = section.__doc__.partition("\n    Attributes:")[0].strip()
    rows = ["| option | values | default | |", "|---|---|---|---|"]
    inner, about = [], sentences(section)
    for field in dataclasses.fields(section):
        if field.default is dataclasses.MISSING:
            inner.append(options(type(field.default_factory()), f"{field.name}."))
        else:
            default = f"`{text_of(field.default)}`" if field.default != "" else ""
            rows.append(
                f"| `{prefix}{field.name}` | {_values(field)} | {default} | {about[field.name]} |"
            )
    title = f"## `{prefix.rstrip('.')}`" if prefix else "## The run"
    return "\n\n".join([title, head, "\n".join(rows), *inner])


def _values(field: dataclasses.Field) -> str:
    """Its choices, or its type and the bounds of it."""
    rule, kind = field.metadata, field.type.removeprefix("tuple[").partition(",")[0]
    if "choices" in rule:
        return ", ".join(f"`{choice}`" for choice in rule["choices"])
    names = {"str": "text", "bool": "`true`, `false`", "int": "integer", "float": "number"}
    signs = {"low": "≥", "above": ">", "high": "≤", "below": "<"}
    bounds = [f"{sign} {rule[key]:,}" for key, sign in signs.items() if key in rule]
    several = "s" if field.type.startswith("tuple") else ""
    return " ".join([names[kind] + several, ", ".join(bounds)]).strip()
