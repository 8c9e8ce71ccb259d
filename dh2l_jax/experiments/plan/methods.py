"""The methods that `table-field` compares, a row each: what it changes, and what it chooses from.

Every list holds two or three values, fixed before a run was made: the coefficients of the method's
paper where they are known (`dh2l_jax.REGULARIZERS` names it), else a tenth and one.
"""

from __future__ import annotations

import dataclasses

from dh2l_jax.checks import unknown_name
from dh2l_jax.experiments.plan.settings import LAMBDA_E, LAMBDA_L, Setting

__all__ = ["METHODS", "Method", "setting_of"]

Lists = tuple[tuple[str, tuple[float, ...]], ...]


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


def _loss(name: str, *lists: tuple[str, tuple[float, ...]]) -> Method:
    return Method("loss", changes=(f"loss.name={name}",), lists=lists)


def _head(name: str, *lists: tuple[str, tuple[float, ...]]) -> Method:
    return Method("head", changes=(f"model.head={name}",), lists=lists)


_IN_TREE = ("reg.lambda_e", LAMBDA_E)
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
    "factored": Method("tree of weights", "factored", "d_am_cos", lists=(_IN_TREE,)),
    "E+H(d_am_cos)": Method(
        "tree of weights", "E+H", "d_am_cos", lists=(_IN_TREE, ("reg.lambda_l", LAMBDA_L))
    ),
    "hxe": _loss("hxe", ("loss.alpha", (0.1, 0.5))),
    "soft_labels": _loss("soft_labels", ("loss.beta", (4.0, 10.0))),
    "conditional": _loss("conditional"),
    "hrn": _loss("hrn"),
    "haframe": _head("haframe"),
    "etf": _head("etf"),
    "sphere": _head("sphere"),
    "crm": Method("decision", changes=("eval.decision=crm",)),
}


def setting_of(data: str, model: str, name: str) -> Setting:
    """What a method trains on a data set.

    Raises:
      ValueError: there is no such method.

    >>> str(setting_of("fashion_mnist_mini", "resnet8", "hxe").candidates[0])
    'α 0.1'
    """
    if name not in METHODS:
        raise ValueError(unknown_name("method", name, METHODS))
    method = METHODS[name]
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
        lists=None if plain else method.lists,
    )
