"""The methods known by name, a row each: what it changes, and what it chooses from.

Every list holds two or three values, fixed before a run was made: the coefficients of the method's
paper where they are known (`dh2l_jax.REGULARIZERS` names it), else a tenth and one.
"""

from __future__ import annotations

import dataclasses
import re
import shlex

from dh2l_jax.checks import unknown_name
from dh2l_jax.experiments.plan.settings import LAMBDA_E, LAMBDA_L, Lists, Setting, listed
from dh2l_jax.training.config import Config, override

__all__ = ["METHODS", "Method", "setting_of"]


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
      kind: what it changes: "baseline", "weights", "tree of weights", "loss", "head", "decision".
      variant: of the recipe it starts from, see `recipes.VARIANTS`.
      metric: regulariser of every kernel and of the head, or of the tree where there is one.
      head_metric: of the head, where it is another.
      changes: options, "key=value".
      lists: option → values to choose from on validation.
    """

    kind: str
    variant: str = "l2"
    metric: str = ""
    head_metric: str = ""
    changes: tuple[str, ...] = ()
    lists: Lists = ()


def _weights(metric: str, lambdas: tuple[float, ...] = LAMBDA_E, head: str = "") -> Method:
    return Method("weights", "E", metric, head, lists=(("reg.lambda_e", lambdas),))


def _in_tree(variant: str, metric: str) -> Method:
    lists: Lists = ("reg.lambda_e", LAMBDA_E), ("reg.lambda_l", LAMBDA_L)
    return Method("tree of weights", variant, metric, lists=lists[: 1 + (variant == "E+H")])


def _loss(name: str, *lists: tuple[str, tuple[float, ...]]) -> Method:
    return Method("loss", changes=(f"loss.name={name}",), lists=lists)


def _head(name: str, *lists: tuple[str, tuple[float, ...]]) -> Method:
    return Method("head", changes=(f"model.head={name}",), lists=lists)


METHODS = {
    "baseline": Method("baseline", "baseline"),
    "l2": Method("baseline"),
    "E(d_am_cos)": _weights("d_am_cos"),
    "mhe_s2": _weights("mhe_s2"),
    "uniformity": _weights("uniformity", (0.01, 0.1)),
    "mma": _weights("mma", (0.03, 0.07)),
    "koleo": _weights("koleo"),
    "cosine2": _weights("cosine2"),
    "mgd": _weights("mgd", (0.001, 0.01)),
    "so": _weights("so", (1e-4, 1e-3)),
    "srip": _weights("srip", (1e-3, 1e-2)),
    "ocnn": _weights("ocnn", (1e-4, 1e-3), head="so"),
    "factored": _in_tree("factored", "d_am_cos"),
    "E+H(d_am_cos)": _in_tree("E+H", "d_am_cos"),
    "hxe": _loss("hxe", ("loss.alpha", (0.1, 0.5))),
    "soft_labels": _loss("soft_labels", ("loss.beta", (4.0, 10.0))),
    "conditional": _loss("conditional"),
    "hrn": _loss("hrn"),
    "haframe": _head("haframe"),
    "etf": _head("etf"),
    "sphere": _head("sphere"),
    "crm": Method("decision", changes=("eval.decision=crm",)),
}


def _method(name: str) -> Method:
    """The method of a name, of "E(metric)", "factored(metric)", "E+H(metric)", or a regulariser."""
    # Imported late: the regularisers need JAX, and the help of a command does not.
    from dh2l_jax.metrics import get_metric
    from dh2l_jax.regularizers import REGULARIZERS, regularizer

    if name in METHODS:
        return METHODS[name]
    form = re.fullmatch(r"(E|factored|E\+H)\((.+)\)", name)
    variant, metric = form.groups() if form else ("E", name)
    if variant != "E":
        get_metric(metric)
        return _in_tree(variant, metric)
    base = metric.partition("(")[0]
    if not form and base not in REGULARIZERS:
        raise ValueError(unknown_name("method", name, [*METHODS, *REGULARIZERS]))
    regularizer(metric)
    known = METHODS.get(base, _weights(base))
    return dataclasses.replace(known, metric=metric)


def _described(text: str) -> tuple[str, Method]:
    """The name and the method of "NAME: --set KEY=VALUE --search KEY=VALUE,VALUE"."""
    name, _, rest = text.partition(":")
    words, changes, lists = shlex.split(rest), [], []
    if not re.fullmatch(r"[\w.+=()-]+", name) or name in METHODS:
        raise ValueError(
            f"expected a new name of letters, digits and .+-=() before the colon, found {name!r}"
        )
    for flag, word in zip(words[::2], words[1::2] + [""] * (len(words) % 2), strict=True):
        if flag == "--set":
            override(Config(), word)
            changes.append(word)
        elif flag == "--search":
            lists.append(listed(word))
        else:
            raise ValueError(
                f"{name}: expected --set KEY=VALUE or --search KEY=A,B, found {flag!r}"
            )
    if not words:
        raise ValueError(f"{name}: expected --set KEY=VALUE or --search KEY=A,B, found nothing")
    return name, Method("own", changes=tuple(changes), lists=tuple(lists))


def setting_of(data: str, model: str, name: str, search: Lists = ()) -> Setting:
    """What a method trains on a data set.

    Args:
      data: name of the data set.
      model: network.
      name: one of `METHODS`, a name of `REGULARIZERS`, "E(metric)", "factored(metric)",
        "E+H(metric)", or "NAME: --set KEY=VALUE" for what changes l2 otherwise.
      search: options that are chosen together with the method's own.

    Raises:
      ValueError: there is no such method.

    >>> str(setting_of("fashion_mnist_mini", "resnet8", "hxe").candidates[0])
    'α 0.1'
    """
    name, method = _described(name) if ":" in name else (name, _method(name))
    plain = name in ("baseline", "l2")
    head = method.head_metric or method.metric
    return Setting(
        data,
        model,
        method.variant,
        method.metric,
        "" if method.variant == "factored" else head,
        method="" if plain else name,
        changes=method.changes,
        lists=None if plain and not search else (*search, *method.lists),
    )
