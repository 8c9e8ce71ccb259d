"""Layouts of Flax Linen modules: `init` is run without numbers, and each layer tells its axes.

Where `nn.scan` or `nn.vmap` add axes, it is run once more with each parameter put into a box that
names its axes: they tell such boxes where they add one, so nothing is guessed from shapes.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from dh2l_jax.checks import unknown_name
from dh2l_jax.regularizers.params.layouts.names import Known, by_name
from dh2l_jax.regularizers.params.layouts.spelled import contraction, convolution, linear
from dh2l_jax.regularizers.params.leaves import named, path_text

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
    told: dict[str, _Told] = {}
    made = dict(named(_init(module, inputs, told)))
    if any(told[path].shape != x.shape for path, x in made.items() if path in told):
        told |= _with_added_axes(module, inputs)
    prefix = "" if made.keys() & leaves.keys() else "params/"
    found = {
        path: Known(None, "", f"of {path.split('/')[0]}, no parameter")
        for path in leaves
        if not path.startswith(prefix)
    }
    for path, x in made.items():
        at = prefix + path
        if at not in leaves:
            raise ValueError(unknown_name("parameter of the module", at, leaves))
        if leaves[at].shape != x.shape:
            shapes = f"shape {leaves[at].shape}, the module with these inputs {x.shape}"
            raise ValueError(f"{at!r} has {shapes}")
        if path in told:
            found[at] = told[path].known(x.ndim)
    return found


class _Told(NamedTuple):
    """What a layer tells of a parameter that it has made.

    Attributes:
      shape: inside of the transformations that add axes.
      left: names of its axes, with those that have been added.
      right: axes of its vectors, or None.
      source: the type of the layer.
    """

    shape: tuple[int, ...]
    left: tuple[str, ...]
    right: str | None
    source: str

    def known(self, rank: int) -> Known:
        if len(self.shape) < 2:
            return Known(None, self.source, "one axis in each layer: no vectors")
        if self.right is None or len(self.left) != rank:
            return Known(None, self.source)
        return Known(f"{' '.join(self.left).replace(GROUPS, '(g o)')} -> {self.right}", self.source)


def _init(module: Any, inputs: Any, told: dict[str, _Told], *, boxed: bool = False) -> Any:
    """The shapes of the parameters; `told` takes what each layer tells of its own."""
    linen: Any = sys.modules["flax.linen"]
    Box = _box_type()
    positional, by_key = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})

    def listen(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result, layer = call(*args, **kwargs), context.module
        for name, value in layer.scope.variables().get("params", {}).items():
            if isinstance(value, Mapping | Box):
                continue
            path, value = "/".join((*layer.path, name)), jax.tree.leaves(value)[0]
            told.setdefault(path, _tell(linen, layer, name, value.shape, args, kwargs))
            if boxed:
                layer.scope.put_variable("params", name, Box(value, told[path]))
        return result

    def init(arrays: Any, others: Any) -> Any:
        with linen.intercept_methods(listen):
            args = [arrays.get(k, x) for k, x in enumerate(positional)]
            return module.init(jax.random.key(0), *args, **(by_key | others))["params"]

    try:
        return jax.eval_shape(init, _arrays(positional), _arrays(by_key))
    except TypeError as error:
        if inputs:
            raise
        name = type(module).__name__
        raise ValueError(f"inputs=(x, ...) of {name} are missing: {error}") from None


def _with_added_axes(module: Any, inputs: Any) -> dict[str, _Told]:
    """What layers tell where `nn.scan` or `nn.vmap` add axes, with the places of these."""
    Box, told = _box_type(), {}
    try:
        made = _init(module, inputs, told, boxed=True)
    except (
        Exception
    ):  # what maps variables, such as WeightNorm, may take no boxes: it will be asked
        return {}
    nodes = jax.tree_util.tree_leaves_with_path(made, is_leaf=lambda x: isinstance(x, Box))
    return {path_text(path): box.told for path, box in nodes if isinstance(box, Box)}


def _arrays(values: Any) -> dict[Any, Any]:
    """Those that hold arrays, by key: flags such as `train` are not traced."""
    items = values.items() if isinstance(values, Mapping) else enumerate(values)
    return {
        key: x for key, x in items if all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(x))
    }


def _tell(
    linen: Any, layer: Any, name: str, shape: tuple[int, ...], args: Any, kwargs: Any
) -> _Told:
    text = _axes(linen, layer, name, len(shape), args, kwargs)
    source = f"nn.{type(layer).__name__}" if text else "its name"
    text = text or by_name(name, shape)
    if text is None:
        return _Told(shape, (), None, type(layer).__name__)
    left, right = text.replace("(g o)", GROUPS, 1).split(" -> ")
    return _Told(shape, tuple(left.split()), right, source)


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
            return contraction((*given, layer.einsum_str)[0] or "", rank)
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
        told: _Told = dataclasses.field(metadata={"static": True})

        def unbox(self) -> Any:
            return self.value

        def replace_boxed(self, val: Any) -> Any:
            return dataclasses.replace(self, value=val)

        def add_axis(self, index: int, params: Any) -> Any:
            left, right = list(self.told.left), self.told.right
            name = f"layer{sum(axis.startswith('layer') for axis in left) or ''}"
            left.insert(index % (len(left) + 1), name)
            told = self.told._replace(left=tuple(left), right=right and f"{name} {right}")
            return dataclasses.replace(self, told=told)

        def remove_axis(self, index: int, params: Any) -> Any:
            left, right = list(self.told.left), self.told.right
            name = left.pop(index)
            told = self.told._replace(
                left=tuple(left), right=right and right.removeprefix(f"{name} ")
            )
            return dataclasses.replace(self, told=told)

    return Box
