"""TFLite files for LiteRT: float networks, and integer networks with their own codes and scales.

The files are written operation by operation with the schema that LiteRT ships. A converter would
derive new grids, codes and biases from float numbers. An integer file written here holds those of
the `integer.Graph`, for each tensor under the same name, and also the metadata.

Files take one image at a time, [1, H, W, C].
"""

# LiteRT is an extra; types are not checked against it.
# pyright: reportMissingImports=false

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet.export import operations
from mobilenet.export.operations import ExportError
from mobilenet.export.tflite_writer import Writer, require
from mobilenet.quantize import integer

# LiteRT only computes int8 sigmoids on this grid (lite/kernels/activations.cc).
_SIGMOID = integer.Grid(1 / 256, -128)


def write_float(path: Path, program: operations.Program, metadata: Mapping[str, Any]) -> None:
    """Writes a float network.

    Args:
      path: of the .tflite file.
      program: from `operations.trace`.
      metadata: JSON values, stored inside the file.

    Raises:
      ExportError: LiteRT is not installed.
    """
    require()
    _FloatWriter(program).write(path, metadata)


def write_integer(
    path: Path, graph: integer.Graph, metadata: Mapping[str, Any], *, integer_io: bool = False
) -> None:
    """Writes an integer network: int8 activations, weights of int8, or of int4 if all codes fit.

    Grids of unsigned codes are moved to int8 (`signed`), which changes no number. Each operation of
    LiteRT gives the executor's result within one code.

    Args:
      path: of the .tflite file.
      graph: with activations of 8 bits, symmetric weights, and images of a known shape.
      metadata: JSON values, stored inside the file.
      integer_io: take and return int8 codes instead of float numbers.

    Raises:
      ExportError: LiteRT is not installed, or has no kernels for a grid, which the message names.
    """
    require()
    _IntegerWriter(signed(graph), integer_io).write(path, metadata)


def signed(graph: integer.Graph) -> integer.Graph:
    """The same network on grids of int8: unsigned codes of 8 bits are moved down by 128."""
    moved = {name: 128 if grid.low == 0 else 0 for name, grid in graph.grids.items()}
    grids = {}
    for name, grid in graph.grids.items():
        by = moved[name]
        grids[name] = integer.Grid(grid.scale, grid.zero_point - by, grid.low - by, grid.high - by)
        if (grids[name].low, grids[name].high) != (-128, 127):
            raise ExportError(
                f"The tensor {name} has the codes {grid.low} to {grid.high}; TFLite files need "
                "activations of 8 bits. Export this network as ONNX."
            )
    found = []
    for operation in graph.operations:
        by = moved[operation.output]
        changes: dict[str, Any] = {
            name: None if value is None else value - by
            for name, value in (("low", operation.low), ("high", operation.high))
        }
        if isinstance(operation, integer.Lookup):
            changes["table"] = (operation.table.astype(np.int64) - by).astype(np.int8)
        found.append(dataclasses.replace(operation, **changes))
    return integer.Graph(tuple(found), graph.input, graph.output, grids, graph.input_shape)


def _kernel_layout(kernel: np.ndarray, depthwise: bool) -> np.ndarray:
    """[k, k, C_in, C] to TFLite's [C, k, k, C_in], or [k, k, 1, C] to [1, k, k, C]."""
    return kernel.transpose((2, 0, 1, 3) if depthwise else (3, 0, 1, 2))


class _FloatWriter(Writer):
    def __init__(self, program: operations.Program) -> None:
        super().__init__()
        self._shapes = program.shapes
        self.graph.inputs = [self._new(program.input)]
        for operation in program.operations:
            getattr(self, f"_{operation.kind}")(operation, self.tensors[operation.inputs[0]])
        self.graph.outputs = [self.tensors[program.output]]

    def _new(self, name: str) -> int:
        return self.tensor(name, [1, *self._shapes[name]], "FLOAT32")

    def _fused(self, operation: operations.Operation) -> int:
        low, high = operation.clip or (-np.inf, np.inf)
        found = self.activation(low, high)
        if found is None:
            raise ExportError(f"TFLite has no fused activation that clips to {low} .. {high}.")
        return found

    def _linear(self, operation: operations.Operation, kernel: np.ndarray) -> list[int]:
        return [
            self.constant(f"{operation.output}/kernel", np.ascontiguousarray(kernel, np.float32)),
            self.constant(f"{operation.output}/bias", operation.values["bias"].astype(np.float32)),
        ]

    def _conv(self, operation: operations.Operation, x: int) -> None:
        values = operation.values
        kernel, depthwise = values["kernel"], values["depthwise"]
        size = self._shapes[operation.inputs[0]][:2]
        x, options = self.window(
            x, (size[0], size[1]), kernel.shape[0], values["strides"], values["dilation"],
            values["pads"],
        )  # fmt: skip
        dilation = {f"dilation{axis}Factor": values["dilation"] for axis in "HW"}
        self.operator(
            "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
            [x, *self._linear(operation, _kernel_layout(kernel, depthwise))],
            self._new(operation.output),
            2 if depthwise else 1,
            "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions",
            fusedActivationFunction=self._fused(operation),
            **({"depthMultiplier": 1} if depthwise else {}),
            **options,
            **dilation,
        )

    def _dense(self, operation: operations.Operation, x: int) -> None:
        self.operator(
            "FULLY_CONNECTED",
            [x, *self._linear(operation, operation.values["kernel"].T)],
            self._new(operation.output),
            1,
            "FullyConnectedOptions",
            fusedActivationFunction=self._fused(operation),
        )

    def _affine(self, operation: operations.Operation, x: int) -> None:
        scale, shift = operation.values["scale"], operation.values["shift"]
        name = operation.output
        if np.any(shift):
            middle = x
            if np.any(scale != 1):
                middle = self.tensor(f"{name}/scaled", [1, *self._shapes[name]], "FLOAT32")
                factor = self.constant(f"{name}/scale", scale)
                self.operator("MUL", [x, factor], middle, 1, "MulOptions")
            term = self.constant(f"{name}/shift", shift)
            self.operator("ADD", [middle, term], self._new(name), 1, "AddOptions")
        else:
            factor = self.constant(f"{name}/scale", scale)
            self.operator("MUL", [x, factor], self._new(name), 1, "MulOptions")

    def _add(self, operation: operations.Operation, x: int) -> None:
        inputs = [x, self.tensors[operation.inputs[1]]]
        fused = self._fused(operation)
        output = self._new(operation.output)
        self.operator("ADD", inputs, output, 1, "AddOptions", fusedActivationFunction=fused)

    def _multiply(self, operation: operations.Operation, x: int) -> None:
        inputs = [x, self.tensors[operation.inputs[1]]]
        self.operator("MUL", inputs, self._new(operation.output), 1, "MulOptions")

    def _mean(self, operation: operations.Operation, x: int) -> None:
        axes = self.constant(f"{operation.output}/axes", np.array([1, 2], np.int32))
        self.operator(
            "MEAN", [x, axes], self._new(operation.output), 1, "ReducerOptions", keepDims=False
        )

    def _expand(self, operation: operations.Operation, x: int) -> None:
        shape = np.array([-1, 1, 1, self._shapes[operation.output][-1]], np.int32)
        target = self.constant(f"{operation.output}/shape", shape)
        output = self._new(operation.output)
        self.operator("RESHAPE", [x, target], output, 1, "ReshapeOptions", newShape=shape.tolist())

    def _max_pool(self, operation: operations.Operation, x: int) -> None:
        values, source = operation.values, operation.inputs[0]
        size, window, strides = self._shapes[source][:2], values["window"], values["strides"]
        least = float(np.finfo(np.float32).min)  # padding must never be the largest value
        x, options = self.window(x, size, window, strides, 1, values["pads"], least=least)
        options |= {"filterHeight": window, "filterWidth": window}
        self.operator(
            "MAX_POOL_2D", [x], self._new(operation.output), 1, "Pool2DOptions", **options
        )

    def _clip(self, operation: operations.Operation, x: int) -> None:
        low, high = operation.values["low"], operation.values["high"]
        kinds = self.schema.ActivationFunctionType
        known = {kinds.RELU: "RELU", kinds.RELU6: "RELU6"}.get(self.activation(low, high))
        if known is None:
            raise ExportError(f"TFLite has no operation that clips to {low} .. {high}.")
        self.operator(known, [x], self._new(operation.output))

    def _sigmoid(self, operation: operations.Operation, x: int) -> None:
        self.operator("LOGISTIC", [x], self._new(operation.output))

    def _hard_swish(self, operation: operations.Operation, x: int) -> None:
        self.operator("HARD_SWISH", [x], self._new(operation.output), 1, "HardSwishOptions")


class _IntegerWriter(Writer):
    def __init__(self, graph: integer.Graph, integer_io: bool) -> None:
        super().__init__()
        if graph.input_shape is None:
            raise ExportError("The graph has no image shape; TFLite files need it.")
        self._grids = graph.grids
        self._sizes: dict[str, tuple[int, ...]] = {graph.input: graph.input_shape}
        first = self._new(graph.input)
        self.graph.inputs = [first]
        if not integer_io:
            image = self.tensor("image", [1, *graph.input_shape], "FLOAT32")
            self.graph.inputs = [image]
            self.operator("QUANTIZE", [image], first, 1, "QuantizeOptions")
        for operation in graph.operations:
            kind = type(operation).__name__.lower()
            getattr(self, f"_{kind}")(operation, self.tensors[operation.inputs[0]])
        last = self.tensors[graph.output]
        self.graph.outputs = [last]
        if not integer_io:
            real = self.tensor("scores", [1, *self._sizes[graph.output]], "FLOAT32")
            self.graph.outputs = [real]
            self.operator("DEQUANTIZE", [last], real, 2, "DequantizeOptions")

    def _new(self, name: str) -> int:
        grid = self._grids[name]
        return self.tensor(
            name, [1, *self._sizes[name]], "INT8", scale=grid.scale, zero_point=grid.zero_point
        )

    def _fused(self, operation: integer.Operation) -> int:
        """The fused activation that clips to the operation's codes."""
        grid = self._grids[operation.output]
        for low, high in ((-np.inf, np.inf), (0, 6), (0, np.inf)):
            codes = tuple(int(grid.quantize(np.asarray(end))) for end in (low, high))
            if operation.clip(grid) == codes:
                found = self.activation(low, high)
                assert found is not None
                # Even if the grid implies an activation, it is written when the operation has one.
                if low == -np.inf and operation.low is not None:
                    continue
                return found
        raise ExportError(
            f"{operation.name} clips to {operation.clip(grid)}; TFLite only fuses RELU and RELU6."
        )

    def _weights(
        self, operation: Any, kernel: np.ndarray, axis: int, source: integer.Grid
    ) -> list[int]:
        if np.any(operation.kernel_zero_point):
            raise ExportError(
                f"{operation.name} has affine weights; LiteRT computes int8 with symmetric ones. "
                "Set quantize.weights.symmetric=True, or export as ONNX."
            )
        scale = np.asarray(operation.kernel_scale, np.float64)
        name, kernel = operation.output, np.ascontiguousarray(kernel)
        narrow = kernel.min() >= -8 and kernel.max() <= 7
        data = pack(kernel) if narrow else kernel.astype(np.int8).tobytes()
        bias = operation.bias
        if bias is None:
            bias = np.zeros(operation.kernel.shape[-1], np.int32)
        return [
            self.tensor(
                f"{name}/kernel", kernel.shape, "INT4" if narrow else "INT8", data, scale, 0, axis
            ),
            self.tensor(
                f"{name}/bias",
                bias.shape,
                "INT32",
                bias.astype(np.int32).tobytes(),
                (source.scale * scale).astype(np.float32),
            ),
        ]

    def _convolution(self, operation: integer.Convolution, x: int) -> None:
        kernel, depthwise = operation.kernel, operation.depthwise
        source = operation.inputs[0]
        size = self._sizes[source]
        top, bottom, left, right = operation.pads
        reach = operation.dilation * (kernel.shape[0] - 1) + 1
        self._sizes[operation.output] = (
            (size[0] + top + bottom - reach) // operation.strides + 1,
            (size[1] + left + right - reach) // operation.strides + 1,
            kernel.shape[3],
        )
        x, options = self.window(
            x, (size[0], size[1]), kernel.shape[0], operation.strides, operation.dilation,
            operation.pads,
        )  # fmt: skip
        dilation = {f"dilation{axis}Factor": operation.dilation for axis in "HW"}
        weights = self._weights(
            operation,
            _kernel_layout(kernel, depthwise),
            3 if depthwise else 0,
            self._grids[source],
        )
        self.operator(
            "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
            [x, *weights],
            self._new(operation.output),
            3,
            "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions",
            fusedActivationFunction=self._fused(operation),
            **({"depthMultiplier": 1} if depthwise else {}),
            **options,
            **dilation,
        )

    def _dense(self, operation: integer.Dense, x: int) -> None:
        self._sizes[operation.output] = (operation.kernel.shape[1],)
        weights = self._weights(operation, operation.kernel.T, 0, self._grids[operation.inputs[0]])
        self.operator(
            "FULLY_CONNECTED",
            [x, *weights],
            self._new(operation.output),
            4,
            "FullyConnectedOptions",
            fusedActivationFunction=self._fused(operation),
        )

    def _add(self, operation: integer.Add, x: int) -> None:
        self._sizes[operation.output] = self._sizes[operation.inputs[0]]
        inputs = [x, self.tensors[operation.inputs[1]]]
        self.operator(
            "ADD",
            inputs,
            self._new(operation.output),
            2,
            "AddOptions",
            fusedActivationFunction=self._fused(operation),
        )

    def _mean(self, operation: integer.Mean, x: int) -> None:
        self._sizes[operation.output] = self._sizes[operation.inputs[0]][2:]
        axes = self.constant(f"{operation.output}/axes", np.array([1, 2], np.int32))
        self.operator(
            "MEAN", [x, axes], self._new(operation.output), 2, "ReducerOptions", keepDims=False
        )

    def _multiply(self, operation: integer.Multiply, x: int) -> None:
        self._sizes[operation.output] = self._sizes[operation.inputs[0]]
        gate = operation.inputs[1]
        shape = np.array([-1, 1, 1, self._sizes[gate][-1]], np.int32)
        grid = self._grids[gate]
        wide = self.tensor(
            f"{gate}/wide", [1, 1, 1, shape[-1]], "INT8", scale=grid.scale,
            zero_point=grid.zero_point,
        )  # fmt: skip
        target = self.constant(f"{gate}/wide/shape", shape)
        self.operator(
            "RESHAPE", [self.tensors[gate], target], wide, 1, "ReshapeOptions",
            newShape=shape.tolist(),
        )  # fmt: skip
        self.operator("MUL", [x, wide], self._new(operation.output), 2, "MulOptions")

    def _lookup(self, operation: integer.Lookup, x: int) -> None:
        self._sizes[operation.output] = self._sizes[operation.inputs[0]]
        if operation.function != "sigmoid":
            raise ExportError(
                f"{operation.name} is {operation.function or 'a table'}; the only table in TFLite "
                "files is the sigmoid. Export this network as ONNX."
            )
        grid = self._grids[operation.output]
        output = self._new(operation.output)
        if (grid.scale, grid.zero_point) == (_SIGMOID.scale, _SIGMOID.zero_point):
            self.operator("LOGISTIC", [x], output, 2)
            return
        middle = self.tensor(
            f"{operation.output}/sigmoid",
            [1, *self._sizes[operation.output]],
            "INT8",
            scale=_SIGMOID.scale,
            zero_point=_SIGMOID.zero_point,
        )
        self.operator("LOGISTIC", [x], middle, 2)
        self.operator("QUANTIZE", [middle], output, 2, "QuantizeOptions")

    def _rescale(self, operation: integer.Rescale, x: int) -> None:
        self._sizes[operation.output] = self._sizes[operation.inputs[0]]
        self.operator("QUANTIZE", [x], self._new(operation.output), 2, "QuantizeOptions")


def pack(codes: np.ndarray) -> bytes:
    """Codes of four bits, two per byte, the first in the lower half."""
    flat = codes.astype(np.int8).ravel().view(np.uint8) & 15
    flat = np.append(flat, np.zeros(len(flat) % 2, np.uint8))
    return (flat[::2] | flat[1::2] << 4).tobytes()
