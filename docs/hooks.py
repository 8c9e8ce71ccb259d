"""For mkdocs: what a page takes from the code, so that it can't be out of date."""

import dataclasses
import re
from pathlib import Path

from dh2l_jax.training.config import Config

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, **_) -> str:
    """Fills in the table of options and the changelog."""
    markdown = markdown.replace("<!-- options -->", options(Config))
    return markdown.replace("<!-- changelog -->", (ROOT / "CHANGELOG.md").read_text("utf-8"))


def options(section: type, prefix: str = "") -> str:
    """A table of a section of the config, followed by those of the sections in it."""
    head = section.__doc__.partition("\n    Attributes:")[0].strip()
    rows = ["| option | values | default | |", "|---|---|---|---|"]
    inner, about = [], sentences(section)
    for field in dataclasses.fields(section):
        if field.default is dataclasses.MISSING:
            inner.append(options(type(field.default_factory()), f"{field.name}."))
        else:
            default = f"`{_shown(field.default)}`" if field.default != "" else ""
            rows.append(
                f"| `{prefix}{field.name}` | {_values(field)} | {default} | {about[field.name]} |"
            )
    title = f"## `{prefix.rstrip('.')}`" if prefix else "## The run"
    return "\n\n".join([title, head, "\n".join(rows), *inner])


def sentences(section: type) -> dict[str, str]:
    """{option: what the docstring of its section says of it}."""
    _, _, attributes = section.__doc__.partition("Attributes:\n")
    items = re.findall(r"^ {6}(\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in items}


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


def _shown(value: object) -> str:
    """As the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
