"""Arguments at the door: names, rows, masks and labels, each with one wording of its errors.

Nothing here is imported with JAX: trees and configs check their names without it.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax
    from jax.typing import ArrayLike

__all__ = [
    "MissingPart",
    "as_float",
    "checked_rows",
    "integers",
    "is_own",
    "labels_exist",
    "mask",
    "name_and_options",
    "one_line",
    "own",
    "rows",
    "unknown_name",
]


def unknown_name(what: str, found: object, valid: Iterable[str]) -> str:
    """One line that names the value found, the nearest valid name and all valid names.

    >>> unknown_name("shortcut", "a", ["A", "B"])
    "unknown shortcut 'a': did you mean 'A'? Valid: A, B"
    """
    valid = [str(name) for name in valid]
    if not valid:
        return f"unknown {what} {found!r}: there are none here, of any name"
    folded = {name.lower(): name for name in valid}
    close = difflib.get_close_matches(str(found).lower(), folded, n=1, cutoff=0.0)
    hint = f"did you mean {folded[close[0]]!r}? " if close else ""
    return f"unknown {what} {found!r}: {hint}Valid: {', '.join(valid)}"


def name_and_options(text: str) -> tuple[str, dict[str, Any]]:
    """A name with options in words, such as "gaussian(t=2)".

    Raises:
      ValueError: it is no name, or the options are not literals with names.

    >>> name_and_options("gaussian(t=2)"), name_and_options("cosine")
    (('gaussian', {'t': 2}), ('cosine', {}))
    """
    if "(" not in text:
        return text, {}
    try:
        match ast.parse(text.strip(), mode="eval").body:
            case ast.Call(func=ast.Name(id=name), args=[], keywords=options):
                return name, {str(o.arg): ast.literal_eval(o.value) for o in options}
    except (SyntaxError, ValueError):
        pass
    raise ValueError(f"expected NAME or NAME(option=value), found {text!r}")


def one_line(text: object) -> str:
    r"""The text as people are shown it, so that no name can break a line or steer a terminal.

    >>> one_line("Möwe 1"), one_line("two\nlines \x1b[2J")
    ('Möwe 1', 'two\\nlines \\x1b[2J')
    """
    escaped = (c if c.isprintable() else repr(c)[1:-1] for c in str(text))
    return "".join(escaped)


class MissingPart(ValueError):
    """A part of the user's own that is not here.

    Attributes:
      name: "package.module:function".
    """

    def __init__(self, line: str, name: str):
        super().__init__(line)
        self.name = name


def is_own(name: str) -> bool:
    """Whether a name means a function of the user's, "package.module:function".

    >>> is_own("shop.parts:small"), is_own("resnet20"), is_own("tfds:mnist")
    (True, False, False)
    """
    return ":" in name and not name.startswith("tfds:")


def own(option: str, name: str) -> Callable[..., Any]:
    """The function that "package.module:function" names; its module is run.

    Whatever it raises becomes a `ValueError` of one line.

    Raises:
      MissingPart: there is no such module.
      ValueError: the name is no such, the module fails, or has no such function.

    >>> own("data.name", "math:sqrt")(4)
    2.0
    """
    path, _, function = name.partition(":")
    if not all(part.isidentifier() for part in (*path.split("."), function)):
        raise ValueError(f"{option}: expected package.module:function, found {name!r}")
    try:
        module = importlib.import_module(path)
    except Exception as error:  # whatever the user's own code may raise
        reason = " ".join(str(error).split())
        lacking = getattr(error, "name", None) or "?"
        if isinstance(error, ModuleNotFoundError) and f"{path}.".startswith(f"{lacking}."):
            raise MissingPart(
                f"{option}={name}: there is no module {lacking!r} here: put the folder that holds "
                "it on PYTHONPATH",
                name,
            ) from None
        raise ValueError(f"{option}={name}: {type(error).__name__}: {reason}") from error
    found = vars(module).get(function)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if callable(value)]
        raise ValueError(unknown_name(f"function of {path}", function, functions))

    @functools.wraps(found)
    def called(*args: Any, **options: Any) -> Any:
        try:
            return found(*args, **options)
        except Exception as error:  # as above
            reason = " ".join(str(error).split())
            raise ValueError(f"{name}: {type(error).__name__}: {reason}") from error

    return called


def as_float(x: ArrayLike) -> jax.Array:
    """An array of at least float32: half precision and integers are widened, float64 stays."""
    import jax.numpy as jnp

    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"expected real numbers, found an array of dtype {x.dtype}")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def mask(where: ArrayLike | None, shape: tuple[int, ...], like: str) -> jax.Array:
    """A boolean mask of a shape; all True for None.

    Raises:
      TypeError: it is not boolean.
      ValueError: it has another shape; `like` says what that should be, "like the rows".
    """
    import jax.numpy as jnp

    if where is None:
        return jnp.ones(shape, bool)
    where = jnp.asarray(where)
    if where.dtype != bool:
        raise TypeError(f"where must be boolean, found dtype {where.dtype}")
    if where.shape != shape:
        raise ValueError(f"where must have shape {shape} {like}, found {where.shape}")
    return where


def integers(what: str, values: Any, shape: tuple[int, ...] | None = None, like: str = "") -> None:
    """Refuses an array that does not hold integers, or has another shape.

    Raises:
      TypeError: `what` are not integers.
      ValueError: it has another shape; `like` says what that should be.
    """
    import jax.numpy as jnp

    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise TypeError(f"{what} must be integers, found dtype {values.dtype}")
    if shape is not None and values.shape != shape:
        raise ValueError(f"{what} must have shape {shape} {like}, found {values.shape}")


def labels_exist(labels: Any, count: int, where: Any = None, what: str = "classes") -> None:
    """ValueError unless concrete labels, those of a mask if there is one, are in 0..count−1."""
    import numpy as np

    labels = np.asarray(labels)
    outside = (labels < 0) | (labels >= count)
    outside = np.flatnonzero(outside if where is None else outside & np.asarray(where))
    if outside.size:
        raise ValueError(
            f"label {labels[outside[0]]} at index {outside[0]} does not exist: {what} are "
            f"0..{count - 1}"
        )


def rows(W: ArrayLike, where: ArrayLike | None = None) -> tuple[jax.Array, jax.Array]:
    """Checked (n, d) floats and (n,) mask; rows that take no part become 0, whatever they hold."""
    import jax.numpy as jnp

    W, used = checked_rows(W, where)
    return (W if where is None else jnp.where(used[:, None], W, 0)), used


def checked_rows(W: ArrayLike, where: ArrayLike | None = None) -> tuple[jax.Array, jax.Array]:
    """(n, d) floats as they are, and an (n,) mask.

    Raises:
      ValueError: W is not a matrix, or `where` has another length.
      TypeError: `where` is not boolean, or W not real.
    """
    W = as_float(W)
    if W.ndim != 2:
        raise ValueError(f"expected a matrix (n, d) with a vector a row, found shape {W.shape}")
    return W, mask(where, W.shape[:1], "like the rows")
