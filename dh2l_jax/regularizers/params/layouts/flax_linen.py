"""Layouts of Flax Linen modules: `init` is run without numbers, and each layer tells its axes.

A parameter is put into a box that names its axes as soon as its layer has made it. `nn.scan` and
`nn.vmap` tell such boxes where they add an axis, so nothing has to be guessed from shapes.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any

import jax

from dh2l_jax.checks import unknown_name
from dh2l_jax.regularizers.params.layouts.names import Known, by_name
from dh2l_jax.regularizers.params.layouts.spelled import contraction, convolution, linear
from dh2l_jax.regularizers.params.leaves import path_text

__all__ = ["is_module", "read"]

GROUPS = "(g·o)"  # one axis of the array


def is_module(module: Any) -> bool:
    """Whether it is a module of Linen."""
    linen = sys.modules.get("flax.linen")
    return bool(linen) and isinstance(module, linen.Module)


def read(module: Any, inputs: Any, leaves: Mapping[str, Any]) -> dict[str, Known]:
    """Path → what is known of it, of every parameter that `module.init` makes.

    Args:
      module: whose `init` made the parameters.
      inputs: its arguments as a tuple, or by name; arrays may be shapes alone.
      leaves: the parameters by path; "params/" may stand before each.

    Raises:
      ValueError: they are not the parameters of this module and these inputs.
    """
    made = _initialised(module, inputs)
    prefix = "" if made.keys() & leaves.keys() else "params/"
    found = {}
    for path, box in made.items():
        path = prefix + path
        if path not in leaves:
            raise ValueError(unknown_name("parameter of the module", path, leaves))
        if leaves[path].shape != box.value.shape:
            shapes = f"shape {leaves[path].shape}, the module with these inputs {box.value.shape}"
            raise ValueError(f"{path!r} has {shapes}")
        found[path] = box.known()
    return found


def _initialised(module: Any, inputs: Any) -> dict[str, Any]:
    linen: Any = sys.modules["flax.linen"]
    positional, by_key = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
    arrays, others = _arrays(positional), _arrays(by_key)
    Box = _box_type()

    def box_parameters(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        scope = context.module.scope
        for name, value in scope.variables().get("params", {}).items():
            if not isinstance(value, Mapping | Box):
                value = jax.tree.leaves(value)[0]  # seen through the user's own box
                text = _axes(linen, context.module, name, value.ndim, args, kwargs)
                scope.put_variable("params", name, _boxed(context.module, name, value, text))
        return result

    def init(arrays: Any, others: Any) -> Any:
        with linen.intercept_methods(box_parameters):
            args = [arrays.get(k, x) for k, x in enumerate(positional)]
            return module.init(jax.random.key(0), *args, **(by_key | others))["params"]

    try:
        made = jax.eval_shape(init, arrays, others)
    except TypeError as error:
        if inputs:
            raise
        raise ValueError(
            f"inputs=(x, ...) of {type(module).__name__} are missing: {error}"
        ) from None
    nodes = jax.tree_util.tree_leaves_with_path(made, is_leaf=lambda x: isinstance(x, Box))
    return {path_text(path): box for path, box in nodes if isinstance(box, Box)}


def _arrays(values: Any) -> dict[Any, Any]:
    """Those that hold arrays, by key: flags such as `train` are not traced."""
    items = values.items() if isinstance(values, Mapping) else enumerate(values)
    return {
        key: x for key, x in items if all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(x))
    }


def _boxed(layer: Any, name: str, value: Any, text: str | None) -> Any:
    source = f"nn.{type(layer).__name__}" if text else "its name"
    text = text or by_name(name, value.shape)
    if text is None:
        left = tuple(f"a{k}" for k in range(value.ndim))
        return _box_type()(value, left, None, type(layer).__name__)
    left, right = text.replace("(g o)", GROUPS, 1).split(" -> ")
    return _box_type()(value, tuple(left.split()), right, source)


def _axes(linen: Any, layer: Any, name: str, rank: int, args: Any, kwargs: Any) -> str | None:
    """Of a parameter of a layer whose type tells, without axes that a transformation adds."""
    if name == "embedding" and isinstance(layer, linen.Embed):
        return "v d -> v d"
    if name != "kernel":
        return None
    match layer:
        case linen.Dense():
            return "i o -> o i"
        case linen.DenseGeneral():
            batch, outputs = _length(layer.batch_dims), _length(layer.features)
            return linear(batch, rank - batch - outputs, outputs)
        case linen.ConvLocal():
            places = [f"p{k}" for k in range(rank - 2)]
            return f"{' '.join(places)} i o -> {' '.join(places)} o i"
        case linen.Conv():
            return convolution(rank - 2, "i o", layer.feature_group_count)
        case linen.ConvTranspose():
            return convolution(rank - 2, "o i" if layer.transpose_kernel else "i o")
        case linen.Einsum():
            given = [x for x in (*args, *kwargs.values()) if isinstance(x, str)]
            return contraction((*given, layer.einsum_str)[0], rank)
    return None


def _length(axes: Any) -> int:
    return len(axes) if isinstance(axes, tuple | list) else 1


@functools.cache
def _box_type() -> Any:
    """The class of boxes, made from Flax's, which is here only when somebody uses Flax."""
    meta: Any = sys.modules["flax.core.meta"]

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Box(meta.AxisMetadata):
        value: Any
        left: tuple[str, ...] = dataclasses.field(metadata={"static": True})
        right: str | None = dataclasses.field(metadata={"static": True})
        source: str = dataclasses.field(metadata={"static": True})

        def unbox(self) -> Any:
            return self.value

        def replace_boxed(self, val: Any) -> Any:
            return dataclasses.replace(self, value=val)

        def add_axis(self, index: int, params: Any) -> Any:
            name = f"layer{self.added() or ''}"
            left = list(self.left)
            left.insert(index % (len(left) + 1), name)
            right = self.right and f"{name} {self.right}"
            return dataclasses.replace(self, left=tuple(left), right=right)

        def remove_axis(self, index: int, params: Any) -> Any:
            left = list(self.left)
            name = left.pop(index)
            right = self.right and self.right.removeprefix(f"{name} ")
            return dataclasses.replace(self, left=tuple(left), right=right)

        def added(self) -> int:
            return sum(axis.startswith("layer") for axis in self.left)

        def known(self) -> Known:
            if self.right is None:
                few = len(self.left) - self.added() < 2
                return Known(None, self.source, "one axis in each layer: no vectors" if few else "")
            left = " ".join(self.left).replace(GROUPS, "(g o)")
            return Known(f"{left} -> {self.right}", self.source)

    return Box
