"""The command line of `train`, made by tyro from the sections of a config.

tyro lists the options, splits the words and completes them in a shell. Values stay texts here:
`training.config.override` turns them into numbers, so `--optim.lr 0.05`, `--set optim.lr=0.05` and
a line of a table are read alike, and are refused in the same words.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from dh2l_jax.training.config import Config
from dh2l_jax.training.config.options import Checked, flat, sentences, text_of, unknown_option

__all__ = ["Arguments", "parse", "show_help"]

_METAVARS = {
    bool: "{true,false}", int: "INT", float: "FLOAT", str: "TEXT", tuple[str, ...]: "TEXT;…",
}  # fmt: skip


class _Given(str):
    """A text from the command line, unlike those that are shown as defaults."""


def _word(metavar: str) -> PrimitiveConstructorSpec[Any]:
    """One word of the command line, as it is; what is left out keeps its default."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: _Given(words[0]) if words else None,
        is_instance=lambda value: True,
        str_from_instance=lambda value: ["none" if value is None else text_of(value)],
    )


_Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """What the command line says; options of the config as assignments "key=value".

    Attributes:
      name: a config of the package, such as cifar100_resnet20, or a Python file with get_config().
      config: the same, given by name.
      overrides: replaces one option, as --KEY VALUE does; may be given several times.
      variant: what the paper compares: baseline, l2, E, factored or E+H; applied last.
      workdir: folder of the results (left out: a new one in runs/); a run in it goes on.
      profile: folder for the trace of the 10th step, or of the last of a shorter run; the run goes
        on after it.
      eval_only: evaluates the last state of the finished run in --workdir again.
      test: evaluates its last and its best state on the test set, which data.holdout kept apart.
      export: writes its weights in safetensors, under torchvision's names where it has the network.
      options: of the config.
    """

    name: Annotated[Any, _word("CONFIG"), tyro.conf.Positional] = None
    config: Annotated[Any, _word("FILE")] = None
    overrides: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="set", metavar="KEY=VALUE")
    ] = ()
    variant: Annotated[Any, _word("NAME")] = None
    workdir: Annotated[Any, _word("DIR")] = None
    profile: Annotated[Any, _word("DIR")] = None
    eval_only: Annotated[_Flag, tyro.conf.arg(aliases=("--eval-only",))] = False
    test: _Flag = False
    export: Annotated[Any, _word("FILE")] = None
    options: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Config)


_FLAGS = ("config", "set", "variant", "workdir", "profile", "eval-only", "test", "export", "help")

_registry = ConstructorRegistry()


@_registry.struct_rule
def _section(info: StructTypeInfo) -> StructConstructorSpec | None:
    """A section of a config is read as a dict of texts."""
    if not (isinstance(info.type, type) and issubclass(info.type, Checked)):
        return None
    hints, about, fields = typing.get_type_hints(info.type), sentences(info.type), []
    for field in dataclasses.fields(info.default):
        kind: Any = hints[field.name]
        value = getattr(info.default, field.name)
        if not dataclasses.is_dataclass(value):
            choices = field.metadata.get("choices")
            metavar = "{" + ",".join(choices) + "}" if choices else _METAVARS.get(kind, "FLOAT,…")
            kind = Annotated[Any, _word(metavar)]
        fields.append(StructFieldSpec(field.name, kind, value, about.get(field.name, "")))
    return StructConstructorSpec(dict, tuple(fields))


def parse(arguments: Sequence[str], program: str) -> Arguments:
    """The command line, taken apart.

    Raises:
      ValueError: there is no such option (the nearest one is named), or one without a value.
    """
    completion = bool(arguments) and arguments[0].startswith("--tyro-")
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            given, unknown = _cli(
                arguments,
                program.split()[0] if completion else program,
                Config(),
                add_help=False,
                return_unknown_args=True,
            )
    except SystemExit as error:
        if completion:
            raise
        # tyro says what is wrong, a value that is missing, in a coloured box with a title.
        _, _, text = told.getvalue().partition("\n")
        line = " ".join(re.sub(r"\x1b\[[\d;]*m|[\u2500-\u257f]", " ", text).split())
        raise ValueError(line) from error
    if unknown and unknown[0].startswith("-"):
        key = unknown[0].lstrip("-").partition("=")[0]
        line = unknown_option(key, [*_FLAGS, *dict(flat(Config()))])
        raise ValueError(re.sub("'(.*?)'", r"'--\1'", line))
    if unknown:
        raise ValueError(f"expected one config, found {unknown[0]!r} too")
    assignments = [f"{key}={text}" for key, text in _given(given.options)]
    return dataclasses.replace(given, overrides=(*given.overrides, *assignments))


def show_help(program: str, about: str, config: Config) -> None:
    """Prints every option, with the values of a config as defaults."""
    with contextlib.suppress(SystemExit):
        _cli(["--help"], program, config, description=about)


def _cli(arguments: Sequence[str], program: str, config: Config, **options: Any) -> Any:
    return tyro.cli(
        Arguments,
        args=arguments,
        prog=program,
        default=Arguments(options=config),
        registry=_registry,
        use_underscores=True,
        **options,
    )


def _given(options: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The options that the command line sets, by their dotted names."""
    found = []
    for name, value in options.items():
        if isinstance(value, dict):
            found += _given(value, f"{prefix}{name}.")
        elif isinstance(value, _Given):
            found.append((prefix + name, str(value)))
    return found
