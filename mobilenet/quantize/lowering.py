"""Converts a quantised MobileNetV2 and its variables to integers: an `integer.Graph`.

Every tensor keeps the grid to which the network's forward pass rounds it (`layers.weight_grid`,
`layers.activation_grid`). So the graph computes the same, except for the rounding of fixed-point
multiplications and biases: if each operation gets the codes of the forward pass, its output differs
by at most one code. A bias is an integer number of units of input scale * weight scale, which are
usually far smaller than a step of the output. The exception is an input scale without meaning: a
tensor that was 0 on every calibration image has scale 1. If a unit exceeds two steps, rounding the
bias can change the output by more than one code.

    graph = lower(network, variables, (224, 224, 3))
    logits = graph.dequantize_output(integer.run(graph, graph.quantize_input(images)))

Tensors are named by their sites ("blocks_3_1/sum"), and equal those that `layers.SEEN` records.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mobilenet.models.depthwise import output_size, resolve_padding
from mobilenet.models.mobilenet_v2 import MobileNetV2
from mobilenet.models.network import Network
from mobilenet.quantize import integer, layers, numerics
from mobilenet.quantize.rules import WEIGHTS, Rule
from mobilenet.trees import Path, flatten

# A bias may use half of int32; the products need the other half.
_BIAS_LIMIT = 2**30
# Units of the bias per step of the output, in a channel without weights.
_BIAS_STEPS = 2**8


class LoweringError(ValueError):
    """A network has no integer form; the message names the site and says why."""


def lower(
    network: Network, variables: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> integer.Graph:
    """The integer network of a quantised network, with normalisation folded in.

    Args:
      network: quantised (`layers.quantize_network`).
      variables: its `params`, `batch_stats` and `quant`.
      image_shape: [H, W, C] of one image.

    Returns:
      A graph from codes of normalised images to codes of logits, or of the pooled features if there
      is no classifier. Biases are rounded to units of input scale * weight scale. If a channel's
      bias is too large for int32, compared with its weights, the channel gets a larger weight scale
      at which the bias fits; the error of its weights is then far below the output's step.

    Raises:
      LoweringError: the network is not a quantised MobileNetV2, a site stays in float, or integers
        cannot compute a layer (an activation that is not a clip, a table of too many codes).
    """
    if not isinstance(network, MobileNetV2):
        raise LoweringError(
            f"{type(network).__name__} has no integer form; only MobileNetV2 can be quantised."
        )
    try:
        return _Lowering(network, jax.device_get(variables), image_shape).graph()
    except integer.IntegerError as error:
        raise LoweringError(f"The network has no integer form: {error}") from error


class _Lowering:
    def __init__(
        self, network: MobileNetV2, variables: Mapping[str, Any], image_shape: tuple[int, int, int]
    ) -> None:
        self._network = network
        self._rules = layers.rules_of(network)
        self._params = flatten(variables["params"])
        self._stats = flatten(variables["batch_stats"])
        self._quant = flatten(variables[layers.QUANT])
        self._shape = image_shape
        self._sizes: dict[str, tuple[int, int]] = {}  # tensor -> its height and width
        self._grids: dict[str, integer.Grid] = {}
        self._operations: list[integer.Operation] = []

    def graph(self) -> integer.Graph:
        network = self._network
        x = self._tensor("input", self._shape[:2])
        x = self._layer(x, "stem", strides=network.plan.stem_strides, act=network.activation)
        expanded = x
        for block in network.plan.blocks:
            x, expanded = self._block(x, expanded, block)
        if network.plan.head_features:
            x = self._layer(x, "head", act=network.activation)
        x = self._add(integer.Mean, (x,), "pooled")
        if network.num_classes:
            x = self._dense(x, "classifier", "logits")
        return integer.Graph(tuple(self._operations), "input", x, self._grids, self._shape)

    def _block(self, x: str, before: str, block: Any) -> tuple[str, str]:
        network, name, start = self._network, block.name, x
        expanded = x
        if block.expands:
            expanded = self._layer(x, f"{name}/expand", act=network.activation)
        if block.shortcut == "expansion":
            expanded = self._add(
                integer.Add, (expanded, before), f"{name}/expanded_sum", self._sizes[expanded]
            )
        y = self._layer(
            expanded,
            f"{name}/depthwise",
            strides=block.strides,
            dilation=block.dilation,
            depthwise=True,
            act=network.activation,
        )
        if block.squeeze_features:
            y = self._squeeze_excite(y, f"{name}/se")
        y = self._layer(y, f"{name}/project", act=network.bottleneck_activation)
        if block.shortcut == "projection":
            start = self._layer(start, f"{name}/shortcut", act="identity")
        if block.shortcut in ("identity", "projection"):
            y = self._add(integer.Add, (y, start), f"{name}/sum", self._sizes[y])
        return y, expanded

    def _squeeze_excite(self, x: str, name: str) -> str:
        pooled = self._add(integer.Mean, (x,), f"{name}/pooled")
        hidden = self._dense(pooled, f"{name}/reduce", f"{name}/hidden", act="relu")
        scores = self._dense(hidden, f"{name}/expand", f"{name}/scores")
        gate = self._tensor(f"{name}/gate")
        function = self._network.se_gate
        table = integer.lookup_table(function, self._grids[scores], self._grids[gate])
        self._operations.append(
            integer.Lookup(inputs=(scores,), output=gate, table=table, function=function)
        )
        return self._add(integer.Multiply, (x, gate), f"{name}/product", self._sizes[x])

    def _add(
        self,
        kind: type[integer.Operation],
        inputs: tuple[str, ...],
        output: str,
        size: tuple[int, int] | None = None,
    ) -> str:
        self._tensor(output, size)
        self._operations.append(kind(inputs=inputs, output=output))
        return output

    def _layer(
        self,
        x: str,
        layer: str,
        *,
        act: str,
        strides: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
    ) -> str:
        path = tuple(layer.split("/"))
        kernel = np.asarray(self._params[(*path, "conv", "kernel")], np.float32)
        norm = {
            name: np.asarray(tree[(*path, "bn", name)], np.float32)
            for tree, names in ((self._params, ("scale", "bias")), (self._stats, ("mean", "var")))
            for name in names
        }
        factor, fold = map(
            np.asarray,
            layers.fold_factors(norm["scale"], norm["var"], self._network.bn_epsilon),
        )
        bias = norm["bias"].astype(np.float64) - norm["mean"].astype(np.float64) * factor
        window = kernel.shape[:2]
        pads = resolve_padding(self._network.padding, self._sizes[x], window, strides, dilation)
        size = output_size(self._sizes[x], window, strides, pads, dilation)
        output = self._tensor(f"{layer}/output", size)
        low, high = self._clip(output, act)
        fields = self._weights(x, output, f"{layer}/conv", kernel * fold, bias, factor == fold)
        self._operations.append(
            integer.Convolution(
                inputs=(x,),
                output=output,
                low=low,
                high=high,
                strides=strides,
                dilation=dilation,
                pads=(*pads[0], *pads[1]),
                depthwise=depthwise,
                **fields,
            )
        )
        return output

    def _dense(self, x: str, layer: str, output: str, *, act: str = "identity") -> str:
        path = tuple(layer.split("/"))
        kernel, bias = (
            np.asarray(self._params[(*path, name)], np.float32) for name in ("kernel", "bias")
        )
        self._tensor(output)
        low, high = self._clip(output, act)
        fields = self._weights(x, output, layer, kernel, bias, np.ones(len(bias), bool))
        self._operations.append(
            integer.Dense(inputs=(x,), output=output, low=low, high=high, **fields)
        )
        return output

    def _clip(self, tensor: str, activation: str) -> tuple[int | None, int | None]:
        """The codes to which a layer's activation limits its output, inside its grid."""
        if activation not in _CEILINGS:
            raise LoweringError(
                f"The activation before {tensor} is {activation}, which is not a clip of its "
                f"input; integers support {', '.join(_CEILINGS)}."
            )
        if activation == "identity":
            return None, None
        grid = self._grids[tensor]
        return grid.zero_point, int(grid.quantize(np.asarray(_CEILINGS[activation])))

    def _site(self, site: str) -> tuple[Rule, dict[str, Any]]:
        """The rule of a site and its variables, including learned ones."""
        path: Path = tuple(site.split("/"))
        found = {
            key[-1]: np.asarray(leaf, np.float32)
            for tree in (self._quant, self._params)
            for key, leaf in tree.items()
            if key[:-1] == path
        }
        if not found.get("bits", 0):
            raise LoweringError(
                f"The tensor at {site} is kept in float; give every site bits, so that the network "
                "has an integer form."
            )
        return self._rules.find(site), found

    def _tensor(self, site: str, size: tuple[int, int] | None = None) -> str:
        """Stores the grid of a tensor of activations, and its height and width."""
        rule, found = self._site(site)
        learned = {name: found.get(name) for name in ("step", "offset", "clip")}
        grid = layers.activation_grid(found["bits"], rule, found["low"], found["high"], **learned)
        self._grids[site] = _grid(grid)
        if size is not None:
            self._sizes[site] = (size[0], size[1])
        return site

    def _weights(
        self,
        x: str,
        output: str,
        layer: str,
        kernel: np.ndarray,
        bias: np.ndarray,
        live: np.ndarray,
    ) -> dict[str, Any]:
        """Codes, scales and biases of a kernel; channels that are not `live` equal their bias."""
        rule, found = self._site(f"{layer}/{WEIGHTS}")
        ends = [found.get(name) for name in ("low", "high", "step")]
        grid = layers.weight_grid(jnp.asarray(kernel), found["bits"], rule, *ends)
        source = self._grids[x].scale
        # If the bias does not fit, this is the smallest scale at which it fits.
        least = np.abs(bias) / (source * _BIAS_LIMIT)
        given = np.broadcast_to(np.asarray(grid.scale, np.float32), bias.shape)
        if rule.per_channel:
            # Without weights any scale is possible; this one makes the bias precise in the output.
            empty = ~live | ~kernel.reshape(-1, len(bias)).any(0)
            fine = self._grids[output].scale / (source * _BIAS_STEPS)
            given = np.where(empty, np.float32(fine), given)
            scale = np.where(given >= least, given, least.astype(np.float32))
        else:
            scale = np.maximum(grid.scale, least.max(initial=0.0).astype(np.float32))
        grid = grid._replace(scale=scale)
        codes = np.asarray(numerics.to_codes(kernel, grid))
        zero_point = np.asarray(grid.zero_point).astype(np.int64)
        codes = np.where(live, codes, zero_point).astype(np.int64)
        limits = int(np.min(grid.low)), int(np.max(grid.high))
        dtype = integer.Grid(1.0, 0, *limits).dtype
        scale = np.asarray(scale, np.float64)
        return {
            "kernel": codes.astype(dtype),
            "kernel_scale": scale if scale.ndim else scale[None],
            "kernel_zero_point": zero_point if zero_point.any() else 0,
            "bias": np.rint(bias / (source * scale)).astype(np.int64).astype(np.int32),
        }


_CEILINGS = {"identity": np.inf, "relu": np.inf, "relu6": 6.0}


def _grid(grid: numerics.Grid) -> integer.Grid:
    """A grid of one tensor, in the form of the executor."""
    scale, *codes = (np.asarray(leaf) for leaf in grid)
    return integer.Grid(float(scale), *(int(code) for code in codes))
