"""Layouts of Flax NNX modules by their types."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from dh2l_jax.regularizers.params.axes import leading
from dh2l_jax.regularizers.params.layouts.names import Known
from dh2l_jax.regularizers.params.layouts.spelled import contraction, convolution, linear

__all__ = ["is_module", "read"]


def is_module(tree: Any) -> bool:
    """Whether it is a module of NNX."""
    nnx = sys.modules.get("flax.nnx")
    return bool(nnx) and isinstance(tree, nnx.Module)


def read(model: Any) -> dict[str, Known]:
    """Path → what is known of it, of every parameter of the layers whose type tells."""
    nnx: Any = sys.modules["flax.nnx"]
    found = {}
    for path, module in nnx.iter_modules(model):
        for name, shape, text in _kernels(nnx, module):
            variable = getattr(module, name)
            extra = len(variable.shape) - len(shape)
            fits = extra >= 0 and tuple(variable.shape[extra:]) == tuple(shape)
            found[_text((*path, name))] = Known(
                leading(text, extra) if fits else None, f"nnx.{_type(nnx, module)}"
            )
    state = dict(nnx.to_flat_state(nnx.state(model)))
    for path, variable in state.items():
        if isinstance(variable, nnx.Variable) and not isinstance(variable, nnx.Param):
            why = f"an nnx.{type(variable).__name__}, no nnx.Param"
            found[_text(path)] = Known(None, "", why)
    return found | _shared(nnx, model, state)


def _shared(nnx: Any, model: Any, state: dict[Any, Any]) -> dict[str, Known]:
    """Modules and variables that a model holds once more; its state has the first place alone."""
    first = {id(module): path for path, module in nnx.iter_modules(model)}
    places = [
        ((*path, key), child)
        for path, module in nnx.iter_modules(model)
        for key, child in nnx.iter_children(module)
    ]
    first |= {id(child): place for place, child in places if place in state}
    return {
        _text(place): Known(None, "", f"the same as {_text(first[id(child)])!r}")
        for place, child in places
        if first.get(id(child), place) != place
    }


def _text(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


def _kernels(nnx: Any, layer: Any) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """(name, shape, axes) of the kernels of a layer, without axes that a transformation adds."""
    match layer:
        case nnx.Linear():
            yield "kernel", (layer.in_features, layer.out_features), "i o -> o i"
        case nnx.LinearGeneral():
            sizes = tuple(layer.batch_axis.values()), layer.in_features, layer.out_features
            yield "kernel", sum(sizes, ()), linear(*map(len, sizes))
        case nnx.Conv():
            rank, groups = len(layer.kernel_size), layer.feature_group_count
            yield "kernel", layer.kernel_shape, convolution(rank, "i o", groups)
        case nnx.ConvTranspose():
            order = "o i" if layer.transpose_kernel else "i o"
            yield "kernel", layer.kernel_shape, convolution(len(layer.kernel_size), order)
        case nnx.Embed():
            yield "embedding", (layer.num_embeddings, layer.features), "v d -> v d"
        case nnx.Einsum():
            if text := contraction(layer.einsum_str, len(layer.kernel_shape)):
                yield "kernel", layer.kernel_shape, text
        case nnx.LoRA():
            rank = layer.lora_a.shape[-1]
            yield "lora_a", (layer.in_features, rank), "i o -> o i"
            yield "lora_b", (rank, layer.out_features), "i o -> o i"


def _type(nnx: Any, layer: Any) -> str:
    """The name under which NNX exports a layer's type, or the type that it is made from."""
    return next(t.__name__ for t in type(layer).__mro__ if hasattr(nnx, t.__name__))
