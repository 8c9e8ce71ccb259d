"""For mkdocstrings: the examples of docstrings as blocks of code, as the tests run them."""

import re

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\n).+)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Fences what begins with >>> up to the next empty line."""

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        """Called once for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(
                lambda match: f"```pycon\n{match[0]}\n```", obj.docstring.value
            )
