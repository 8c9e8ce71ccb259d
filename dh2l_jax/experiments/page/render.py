"""From a template to a page: everything that it is given is text, and no text becomes a program.

All values are escaped but the page's own style, program and pictures. Should a mark-up slip
through, it could still do nothing: the page's policy allows the one program whose digest it names,
no request, no frame and no form.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dh2l_jax.checks import one_line

__all__ = ["rendered"]

_FOLDER = Path(__file__).parent


def rendered(name: str, context: Mapping[str, Any]) -> str:
    """The template of that name, filled.

    Raises:
      ImportError: there is no Jinja2; the message says what to install.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise ImportError("no jinja2: pip install 'dh2l_jax[report]'") from None

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "line": one_line,
        "percent": lambda share: _number(share, 100, ".2f", " %"),
        "share": lambda share: _number(share, 100, ".1f"),
        "figure": lambda value: _number(value, 1, ".4g"),
        "degrees": lambda value: _number(value, 1, ".2f"),
        "count": lambda value: f"{value:,}",
        "drawing": Markup,
    }
    style, script = ((_FOLDER / f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    own = {"style": Markup(style), "script": Markup(script), "policy": policy}
    return environment.get_template(name).render(**context, **own)


def _number(value: float | None, factor: float, form: str, unit: str = "") -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{factor * value:{form}}".replace("-", "−") + unit
