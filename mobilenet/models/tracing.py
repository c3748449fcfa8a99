"""Costs of any network of this project, from a trace of it: no values are computed.

MobileNetV2's costs follow from its block table (`mobilenet.models.cost`). The costs of other
networks follow from the shapes of their layers' inputs and outputs when JAX traces them.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from mobilenet.models.cost import LayerCost, Shape
from mobilenet.models.layers import SqueezeExcite

Path = tuple[str, ...]


def layer_costs(model: nn.Module, image_shape: Shape) -> list[LayerCost]:
    """The layers of a network in order of computation, counted as `mobilenet.models.cost` counts.

    A module that holds a kernel is a convolution (4 axes) or a dense layer (2 axes). The batch
    normalisation next to a convolution belongs to the convolution's row, and squeeze-and-excitation
    is one row. A row's name is the path of its module; its role is the last part of the path, as
    the network names it: `depthwise`, `pointwise`, `conv1`, `shortcut`, ...

    Args:
      model: any network, unbound.
      image_shape: (H, W, C) of its input.

    Raises:
      ValueError: parameters do not belong to such a layer, or a layer is called twice: the cost is
        not defined here.
    """
    return list(_trace(model, image_shape))


@functools.lru_cache(maxsize=64)  # a sweep asks for the same few networks for every seed
def _trace(model: nn.Module, image_shape: Shape) -> tuple[LayerCost, ...]:
    calls: list[tuple[Path, Shape, Shape]] = []
    squeezes: set[Path] = set()

    def intercept(
        call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any
    ) -> Any:
        result = call(*args, **kwargs)
        module = context.module
        if isinstance(module, SqueezeExcite):
            squeezes.add(module.path)
        # Blocks may return several arrays; they hold no kernel themselves.
        if context.method_name == "__call__" and isinstance(result, jax.Array):
            calls.append((module.path, _shape(args[0]), _shape(result)))
        return result

    def run(key: jax.Array, images: jax.Array) -> Any:
        with nn.intercept_methods(intercept):
            return model.init(key, images)

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(run, jax.random.key(0), images)
    params: dict[Path, Any] = traverse_util.flatten_dict(variables["params"])
    rows: dict[Path, LayerCost] = {}
    for path, in_shape, out_shape in calls:
        squeeze = path in squeezes
        if path[:-1] in squeezes or not (squeeze or (*path, "kernel") in params):
            continue
        layer = path[:-1] if (*path[:-1], "bn", "scale") in params else path
        if layer in rows:
            raise ValueError(f"{'/'.join(layer)} is called twice; its cost is that of one call.")
        pixels = 1 if squeeze else out_shape[0] * out_shape[1]
        rows[layer] = _row(layer, _below(layer, params), in_shape, out_shape, pixels)
    left = params.keys() - {name for layer in rows for name in _below(layer, params)}
    if left:
        names = ", ".join(sorted("/".join(name) for name in left))
        raise ValueError(
            f"{type(model).__name__} has parameters that do not belong to a convolution, a dense "
            f"layer or batch normalisation next to one: {names}. Their cost is not defined."
        )
    return tuple(rows.values())


def _shape(x: jax.Array) -> Shape:
    """(H, W, C) of one image; a vector is a map of one pixel."""
    height, width, channels = (1, 1, *x.shape[1:])[-3:]
    return height, width, channels


def _below(layer: Path, params: dict[Path, Any]) -> dict[Path, Any]:
    return {name: leaf for name, leaf in params.items() if name[: len(layer)] == layer}


def _row(
    layer: Path, params: dict[Path, Any], in_shape: Shape, out_shape: Shape, pixels: int
) -> LayerCost:
    weights = sum(leaf.size for name, leaf in params.items() if name[-1] == "kernel")
    return LayerCost(
        name="/".join(layer),
        role=layer[-1],
        in_shape=in_shape,
        out_shape=out_shape,
        weights=weights,
        biases=sum(
            leaf.size
            for name, leaf in params.items()
            if name[-1] == "bias" and (*name[:-1], "kernel") in params
        ),
        bn_channels=sum(leaf.size for name, leaf in params.items() if name[-1] == "scale"),
        macs=weights * pixels,
    )
