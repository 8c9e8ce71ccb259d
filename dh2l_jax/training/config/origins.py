"""Where the parts of a run come from that are the user's own: package.module:function."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from dh2l_jax.checks import MissingPart, is_own, own
from dh2l_jax.files import read_plain
from dh2l_jax.training.config.sections import Config

__all__ = ["ORIGIN", "origins", "read_origins", "tell_where_parts_were"]

ORIGIN = "origin.json"


def origins(config: Config) -> dict[str, Any]:
    """Option → the module's file, its SHA-256 and, of an installed package, its version."""
    names = {"model.name": config.model.name, "data.name": config.data.name}
    return {option: _origin(option, name) for option, name in names.items() if is_own(name)}


def _origin(option: str, name: str) -> dict[str, str]:
    own(option, name)
    file = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
    found = {"name": name}
    if file:
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        found |= {"file": str(Path(file).absolute()), "sha256": digest}
    package = name.partition(":")[0].split(".")[0]
    for distribution in metadata.packages_distributions().get(package, ())[:1]:
        found["version"] = f"{distribution} {metadata.version(distribution)}"
    return found


@contextlib.contextmanager
def tell_where_parts_were(workdir: Path) -> Iterator[None]:
    """Adds to a `MissingPart` where the run in a folder took the part from."""
    try:
        yield
    except MissingPart as error:
        known = read_origins(workdir)
        files = [o["file"] for o in known.values() if o.get("name") == error.name and "file" in o]
        if not files:
            raise
        raise MissingPart(f"{error}; {workdir} took it from {files[0]}", error.name) from None


def read_origins(workdir: Path) -> dict[str, Any]:
    """What a run has written of its parts; nothing where it has none, or the file is damaged."""
    path = workdir / ORIGIN
    try:
        found = json.loads(read_plain(path))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
