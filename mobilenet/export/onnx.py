"""ONNX files: float networks, and integer networks as QDQ (quantise-dequantise) graphs.

Both are written with `onnx.helper` from the same lists of operations as the TFLite files. Images
are [N, C, H, W] with any N, as usual in ONNX.
"""

# ONNX is an extra; types are not checked against it.
# pyright: reportMissingImports=false

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet.export import operations
from mobilenet.export.operations import ExportError
from mobilenet.quantize import integer

OPSET, IR_VERSION = 21, 10  # opset 21 is the first with 16-bit QuantizeLinear
METADATA = "mobilenet"


def require() -> None:
    """Raises ExportError unless ONNX and ONNX Runtime are installed."""
    operations.require("ONNX files", onnx="onnx", onnxruntime="onnxruntime")


def write_float(path: Path, program: operations.Program, metadata: Mapping[str, Any]) -> None:
    """Writes a float network: images [N, C, H, W] to logits [N, K].

    Args:
      path: of the .onnx file.
      program: from `operations.trace`.
      metadata: JSON values, stored inside the file.

    Raises:
      ExportError: ONNX is not installed.
    """
    require()
    _FloatWriter(program).write(path, metadata)


def write_integer(path: Path, graph: integer.Graph, metadata: Mapping[str, Any]) -> None:
    """Writes an integer network as a QDQ graph: float images [N, C, H, W] to float logits [N, K].

    Activations are uint8 (uint16 above 8 bits), for which runtimes have kernels on x86; weights are
    int8, biases int32. A grid of fewer bits becomes one of 8 bits with a clip before it.

    Args:
      path: of the .onnx file.
      graph: with images of a known shape.
      metadata: JSON values, stored inside the file.

    Raises:
      ExportError: ONNX is not installed, or a table is not a known function.
    """
    require()
    _IntegerWriter(graph).write(path, metadata)


class _Writer:
    """Builds an ONNX graph; tensors of images are [N, C, H, W]."""

    def __init__(self) -> None:
        import onnx

        self.onnx: Any = onnx
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def constant(self, name: str, values: np.ndarray) -> str:
        """Adds a constant, unless there is one of that name."""
        if name not in self.constants:
            self.constants[name] = self.onnx.numpy_helper.from_array(values.copy(order="C"), name)
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Adds a node that computes `output`."""
        self.nodes.append(
            self.onnx.helper.make_node(kind, inputs, [output], name=output, **attributes)
        )
        return output

    def clip(self, x: str, low: float, high: float, output: str) -> str:
        """Adds max(low, min(high, x)), as a ReLU if it is one."""
        if (low, high) == (0, np.inf):
            return self.node("Relu", [x], output)
        ends = [
            "" if np.isinf(end) else self.constant(f"value_{end!r}", np.asarray(end, np.float32))
            for end in (low, high)
        ]
        return self.node("Clip", [x, *ends] if ends[1] else [x, ends[0]], output)

    def convolution(
        self, inputs: list[str], output: str, values: Mapping[str, Any], shape: tuple[int, ...]
    ) -> str:
        """Adds a Conv for a kernel of shape [k, k, C_in, C]."""
        top, bottom, left, right = values["pads"]
        return self.node(
            "Conv",
            inputs,
            output,
            strides=[values["strides"]] * 2,
            dilations=[values["dilation"]] * 2,
            pads=[top, left, bottom, right],
            group=shape[3] if values["depthwise"] else 1,
            kernel_shape=list(shape[:2]),
        )

    def finish(
        self, path: Path, shape: tuple[int, ...], classes: int, output: str, metadata: Any
    ) -> None:
        """Writes the file: from `image` [N, C, H, W] to `output` [N, classes]."""
        helper, real = self.onnx.helper, self.onnx.TensorProto.FLOAT
        height, width, channels = shape
        graph = helper.make_graph(
            self.nodes,
            "mobilenet",
            [helper.make_tensor_value_info("image", real, ["N", channels, height, width])],
            [helper.make_tensor_value_info(output, real, ["N", classes])],
            list(self.constants.values()),
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="mobilenet export",
        )
        helper.set_model_props(model, {METADATA: json.dumps(metadata, sort_keys=True)})
        self.onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString())


class _FloatWriter(_Writer):
    def __init__(self, program: operations.Program) -> None:
        super().__init__()
        self._program = program
        for operation in program.operations:
            output = operation.output
            if operation.clip is not None:
                output = f"{output}/linear"
            getattr(self, f"_{operation.kind}")(operation, output)
            if operation.clip is not None:
                self.clip(output, *operation.clip, operation.output)

    def write(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Writes the file."""
        shapes, output = self._program.shapes, self._program.output
        self.finish(path, shapes[self._program.input], shapes[output][-1], output, metadata)

    def _conv(self, operation: operations.Operation, output: str) -> None:
        values, name = operation.values, operation.output
        kernel = values["kernel"].transpose(3, 2, 0, 1)
        inputs = [
            operation.inputs[0],
            self.constant(f"{name}/kernel", kernel),
            self.constant(f"{name}/bias", values["bias"]),
        ]
        self.convolution(inputs, output, values, values["kernel"].shape)

    def _dense(self, operation: operations.Operation, output: str) -> None:
        values, name = operation.values, operation.output
        kernel = self.constant(f"{name}/kernel", values["kernel"].T)
        bias = self.constant(f"{name}/bias", values["bias"])
        self.node("Gemm", [operation.inputs[0], kernel, bias], output, transB=1)

    def _affine(self, operation: operations.Operation, output: str) -> None:
        name, x = operation.output, operation.inputs[0]
        maps = len(self._program.shapes[x]) == 3

        def constant(part: str) -> str:
            value = operation.values[part]
            return self.constant(
                f"{name}/{part}", value.reshape(-1, 1, 1) if value.ndim and maps else value
            )

        scales, shifts = np.any(operation.values["scale"] != 1), np.any(operation.values["shift"])
        if scales or not shifts:
            after = f"{output}/scaled" if shifts else output
            x = self.node("Mul", [x, constant("scale")], after)
        if shifts:
            self.node("Add", [x, constant("shift")], output)

    def _add(self, operation: operations.Operation, output: str) -> None:
        self.node("Add", list(operation.inputs), output)

    def _multiply(self, operation: operations.Operation, output: str) -> None:
        self.node("Mul", list(operation.inputs), output)

    def _mean(self, operation: operations.Operation, output: str) -> None:
        axes = self.constant("axes_of_maps", np.array([2, 3]))
        self.node("ReduceMean", [operation.inputs[0], axes], output, keepdims=0)

    def _expand(self, operation: operations.Operation, output: str) -> None:
        axes = self.constant("axes_of_maps", np.array([2, 3]))
        self.node("Unsqueeze", [operation.inputs[0], axes], output)

    def _max_pool(self, operation: operations.Operation, output: str) -> None:
        top, bottom, left, right = operation.values["pads"]
        self.node(
            "MaxPool",
            list(operation.inputs),
            output,
            kernel_shape=[operation.values["window"]] * 2,
            strides=[operation.values["strides"]] * 2,
            pads=[top, left, bottom, right],
        )

    def _clip(self, operation: operations.Operation, output: str) -> None:
        self.clip(operation.inputs[0], operation.values["low"], operation.values["high"], output)

    def _sigmoid(self, operation: operations.Operation, output: str) -> None:
        self.node("Sigmoid", list(operation.inputs), output)

    def _hard_swish(self, operation: operations.Operation, output: str) -> None:
        self.node("HardSwish", list(operation.inputs), output)


class _IntegerWriter(_Writer):
    """Every tensor is quantised and dequantised once; operations read the dequantised tensor."""

    def __init__(self, graph: integer.Graph) -> None:
        super().__init__()
        if graph.input_shape is None:
            raise ExportError("The graph has no image shape; ONNX files need it.")
        self._graph = graph
        self._quantize("image", graph.input)
        for operation in graph.operations:
            linear = f"{operation.output}/real"
            getattr(self, f"_{type(operation).__name__.lower()}")(operation, linear)
            self._quantize(linear, operation.output, operation)

    def write(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Writes the file."""
        output = self._graph.output
        last = self._graph.operation(output)
        if not isinstance(last, integer.Dense | integer.Mean):
            raise ExportError(f"The network ends in {last.name}, not in logits or features.")
        classes = last.kernel.shape[1] if isinstance(last, integer.Dense) else self._features()
        assert self._graph.input_shape is not None
        self.finish(path, self._graph.input_shape, classes, output, metadata)

    def _features(self) -> int:
        kernels = [op.kernel for op in self._graph.operations if hasattr(op, "kernel")]  # pyright: ignore[reportAttributeAccessIssue]
        return kernels[-1].shape[-1]

    def _quantize(self, x: str, name: str, operation: integer.Operation | None = None) -> None:
        """From real numbers to the codes of a tensor, and to their dequantised values, `name`."""
        grid = self._graph.grids[name]
        wide = grid.high - grid.low > 255
        dtype, span = (np.uint16, 65535) if wide else (np.uint8, 255)
        # Codes become unsigned; a grid with fewer codes does not use the upper ones.
        shift = -grid.low
        low, high = (grid.low, grid.high) if operation is None else operation.clip(grid)
        if low > grid.low or high < grid.low + span:
            least, most = (
                float(np.float32(grid.scale * (end - grid.zero_point))) for end in (low, high)
            )
            x = self.clip(x, least, most, f"{name}/clipped")
        arguments = [
            self.constant(f"{name}/scale", np.asarray(grid.scale, np.float32)),
            self.constant(f"{name}/zero_point", np.asarray(grid.zero_point + shift, dtype)),
        ]
        codes = self.node("QuantizeLinear", [x, *arguments], f"{name}/codes")
        self.node("DequantizeLinear", [codes, *arguments], name)

    def _weights(self, operation: Any, kernel: np.ndarray) -> list[str]:
        """Kernel and bias as dequantised constants; the first axis is the output channels."""
        name, source = operation.output, self._graph.grids[operation.inputs[0]]
        channels = kernel.shape[0]
        scale = np.asarray(operation.kernel_scale, np.float64)
        zero_point = np.asarray(operation.kernel_zero_point)
        if scale.size == 1 and zero_point.size == 1:
            scale, zero_point, axis = scale.reshape(()), zero_point.reshape(()), {}
        else:
            scale, zero_point = (np.broadcast_to(part, (channels,)) for part in (scale, zero_point))
            axis = {"axis": 0}
        parts: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {
            "kernel": (kernel.astype(np.int8), scale, zero_point.astype(np.int8)),
        }
        bias = np.zeros(channels, np.int32) if operation.bias is None else operation.bias
        steps = source.scale * scale
        parts["bias"] = (bias.astype(np.int32), steps, np.zeros(steps.shape, np.int32))
        return [
            self.node(
                "DequantizeLinear",
                [
                    self.constant(f"{name}/{part}/codes", codes),
                    self.constant(f"{name}/{part}/scale", steps.astype(np.float32)),
                    self.constant(f"{name}/{part}/zero_point", zero),
                ],
                f"{name}/{part}",
                **axis,
            )
            for part, (codes, steps, zero) in parts.items()
        ]

    def _convolution(self, operation: integer.Convolution, output: str) -> None:
        kernel = operation.kernel
        inputs = [operation.inputs[0], *self._weights(operation, kernel.transpose(3, 2, 0, 1))]
        names = ("strides", "dilation", "pads", "depthwise")
        values = {name: getattr(operation, name) for name in names}
        self.convolution(inputs, output, values, kernel.shape)

    def _dense(self, operation: integer.Dense, output: str) -> None:
        inputs = [operation.inputs[0], *self._weights(operation, operation.kernel.T)]
        self.node("Gemm", inputs, output, transB=1)

    def _add(self, operation: integer.Add, output: str) -> None:
        self.node("Add", list(operation.inputs), output)

    def _mean(self, operation: integer.Mean, output: str) -> None:
        axes = self.constant("axes_of_maps", np.array([2, 3]))
        self.node("ReduceMean", [operation.inputs[0], axes], output, keepdims=0)

    def _multiply(self, operation: integer.Multiply, output: str) -> None:
        axes = self.constant("axes_of_maps", np.array([2, 3]))
        gate = self.node("Unsqueeze", [operation.inputs[1], axes], f"{operation.inputs[1]}/wide")
        self.node("Mul", [operation.inputs[0], gate], output)

    def _lookup(self, operation: integer.Lookup, output: str) -> None:
        known = {
            "sigmoid": ("Sigmoid", {}),
            "hard_sigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
            "hard_swish": ("HardSwish", {}),
        }
        if operation.function not in known:
            raise ExportError(f"{operation.name} is a table of an unknown function.")
        kind, attributes = known[operation.function]
        self.node(kind, list(operation.inputs), output, **attributes)

    def _rescale(self, operation: integer.Rescale, output: str) -> None:
        self.node("Identity", list(operation.inputs), output)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata inside a file that this module wrote.

    Raises:
      ExportError: the file has none, or ONNX is not installed.
    """
    require()
    from onnx import load

    for entry in load(path).metadata_props:
        if entry.key == METADATA:
            return json.loads(entry.value)
    raise ExportError(f"{path} has no metadata of this project.")
