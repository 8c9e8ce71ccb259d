"""The arrays of a file by name: which of them are vectors, along which axes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dh2l_jax.checks import unknown_name
from dh2l_jax.regularizers.params.layouts.names import OUT_FIRST, no_vectors

__all__ = ["LAYOUTS", "file_rules", "is_torchs"]

# Names of torchvision's and timm's networks: ResNets and their kin, VGG, DenseNet, MobileNet,
# EfficientNet, ConvNeXt, vision transformers. All of them keep outputs first.
_TORCHS = re.compile(
    r"(module\.)?(conv1|conv_proj|conv_stem|conv_head|fc|head|classifier|layer\d\.\d+\.\w+(\.\d+)?"
    r"|(features|classifier|encoder\.layers|heads?|blocks|stages|stem|patch_embed|downsample)"
    r"\.[\w.]+)\.(\w+_)?weight"
)
_WEIGHT = re.compile(r"(.*[./])?(\w+_)?weight")
_INPUTS_FIRST = {
    2: "i o -> o i",
    3: "k i o -> o (k i)",
    4: "kh kw i o -> o (kh kw i)",
    5: "kd kh kw i o -> o (kd kh kw i)",
}
_OUTPUTS_FIRST = {rank: next(iter(axes)) for rank, axes in OUT_FIRST.items()}
LAYOUTS = {
    "torch": (_WEIGHT, _OUTPUTS_FIRST),
    "flax": (re.compile(r"(.*[./])?kernel"), _INPUTS_FIRST),
    "haiku": (re.compile(r"(.*[./])?w"), _INPUTS_FIRST),
}
"""Name → which leaves hold vectors, and the axes of those by their rank."""


def is_torchs(arrays: Mapping[str, Any]) -> bool:
    """Whether all names of weights are those of torchvision's or timm's networks.

    >>> import numpy as np
    >>> is_torchs({"layer1.0.conv1.weight": np.ones((2, 2)), "fc.weight": np.ones((2, 2))})
    True
    >>> is_torchs({"h.0.attn.c_attn.weight": np.ones((2, 6))})  # GPT-2 keeps inputs first
    False
    """
    weights = [name for name, x in arrays.items() if x.ndim > 1 and _WEIGHT.fullmatch(name)]
    return bool(weights) and all(map(_TORCHS.fullmatch, weights))


def file_rules(
    arrays: Mapping[str, Any], layout: str | None = None, told: Mapping[str, str] | None = None
) -> dict[str, Any]:
    r"""Rules, as `dh2l.rules` takes them, for the arrays of a file.

    Args:
      arrays: name → array.
      layout: one of `LAYOUTS`, or None where names and told axes say all.
      told: pattern → axes; these come first.

    Raises:
      ValueError: unknown layout.

    >>> import numpy as np
    >>> file_rules({"a.weight": np.ones((2, 3)), "a.bias": np.ones(2)}, "torch")
    {'^a\\.weight$': ('cosine', 1.0, 'o i -> o i')}
    """
    rules: dict[str, Any] = {p: ("cosine", 1.0, axes) for p, axes in (told or {}).items()}
    arrays = {k: x for k, x in arrays.items() if not any(re.search(p, k) for p in told or ())}
    if layout is None:
        rest = not told or any(not no_vectors(name, array) for name, array in arrays.items())
        return rules | ({"": ("cosine", 1.0)} if rest else {})
    if layout not in LAYOUTS:
        raise ValueError(unknown_name("layout", layout, LAYOUTS))
    name_of, axes_of = LAYOUTS[layout]
    for name, array in arrays.items():
        if name_of.fullmatch(name) and array.ndim in axes_of:
            rules[f"^{re.escape(name)}$"] = ("cosine", 1.0, axes_of[array.ndim])
        elif re.fullmatch(r"(.*[./])?embeddings?", name) and array.ndim == 2:
            rules[f"^{re.escape(name)}$"] = ("cosine", 1.0, "v d -> v d")
    return rules
