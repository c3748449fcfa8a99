"""Writes TFLite files tensor by tensor, for all kinds of networks, with their metadata."""

# LiteRT is an extra; types are not checked against it.
# pyright: reportMissingImports=false

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet.export import operations
from mobilenet.export.operations import ExportError
from mobilenet.models.depthwise import resolve_padding

METADATA = "mobilenet"  # the name of the metadata's buffer
SIGNATURE = "serving_default"  # TensorFlow's name for the only signature


def require() -> None:
    """Raises ExportError unless LiteRT and the package that packs files are installed."""
    operations.require("TFLite files", ai_edge_litert="LiteRT", flatbuffers="FlatBuffers")


class Writer:
    """Builds a TFLite model."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema: Any = schema
        self.model: Any = schema.ModelT()
        self.model.version = 3
        self.model.description = "mobilenet export"
        self.model.operatorCodes, self.model.buffers, self.model.metadata = [], [], []
        self.graph: Any = schema.SubGraphT()
        self.graph.name = "main"
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs = [self.graph]
        self._codes: dict[tuple[int, int], int] = {}
        self._buffer(b"")  # by convention the first buffer is empty
        self.tensors: dict[str, int] = {}

    def _buffer(self, data: bytes) -> int:
        buffer = self.schema.BufferT()
        if data:
            buffer.data = np.frombuffer(data, np.uint8)
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        kind: str,
        data: bytes = b"",
        scale: Any = None,
        zero_point: Any = 0,
        axis: int = 0,
    ) -> int:
        """Adds a tensor, a constant if it has data; returns its number."""
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape = name, [int(n) for n in shape]
        tensor.type = getattr(self.schema.TensorType, kind)
        tensor.buffer = self._buffer(data) if data else 0
        if scale is not None:
            quantization = self.schema.QuantizationParametersT()
            scales = np.atleast_1d(np.asarray(scale, np.float32))
            quantization.scale = scales
            quantization.zeroPoint = np.broadcast_to(
                np.asarray(zero_point, np.int64), scales.shape
            ).copy()
            quantization.quantizedDimension = axis
            tensor.quantization = quantization
        self.graph.tensors.append(tensor)
        self.tensors[name] = len(self.graph.tensors) - 1
        return self.tensors[name]

    def constant(self, name: str, values: np.ndarray) -> int:
        """Adds a float32 or int32 constant."""
        kind = "FLOAT32" if values.dtype == np.float32 else "INT32"
        return self.tensor(name, values.shape, kind, values.tobytes())

    def operator(
        self,
        kind: str,
        inputs: Sequence[int],
        output: int,
        version: int = 1,
        options: str = "",
        **values: Any,
    ) -> None:
        """Adds an operation; `options` names the table that holds `values`."""
        schema = self.schema
        key = (getattr(schema.BuiltinOperator, kind), version)
        if key not in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.version = key
            code.deprecatedBuiltinCode = min(key[0], 127)
            self._codes[key] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = self._codes[key]
        operator.inputs, operator.outputs = [int(n) for n in inputs], [int(output)]
        if options:
            table = getattr(schema, f"{options}T")()
            for name, value in values.items():
                assert hasattr(table, name), name
                setattr(table, name, value)
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            operator.builtinOptions = table
        self.graph.operators.append(operator)

    def window(
        self,
        x: int,
        size: tuple[int, ...],
        window: int,
        strides: int,
        dilation: int,
        pads: Sequence[int],
        *,
        least: float | None = None,
    ) -> tuple[int, dict[str, int]]:
        """The input of an operation with a window, padded if necessary, and the window's options.

        Args:
          x: number of the tensor to read.
          size: its height and width.
          window, strides, dilation: equal in both directions.
          pads: top, bottom, left, right.
          least: float number to pad with; None is 0, or its code.
        """
        padding = self.schema.Padding
        same = resolve_padding("SAME", size, (window, window), strides, dilation)
        options = {"strideH": strides, "strideW": strides, "padding": padding.VALID}
        if tuple(pads) == (*same[0], *same[1]):
            options["padding"] = padding.SAME
        elif any(pads):
            x = self._padded(x, size, pads, least)
        return x, options

    def _padded(self, x: int, size: tuple[int, ...], pads: Sequence[int], least: Any) -> int:
        tensor = self.graph.tensors[x]
        top, bottom, left, right = pads
        name = f"{tensor.name}/padded_{len(self.graph.tensors)}"
        rows = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
        shape = [1, size[0] + top + bottom, size[1] + left + right, tensor.shape[3]]
        kind = next(k for k, v in vars(self.schema.TensorType).items() if v == tensor.type)
        known = tensor.quantization
        padded = self.tensor(
            name,
            shape,
            kind,
            scale=None if known is None else known.scale,
            zero_point=0 if known is None else known.zeroPoint[0],
        )
        inputs = [x, self.constant(f"{name}/amounts", rows)]
        if least is None:
            self.operator("PAD", inputs, padded, 1 if kind == "FLOAT32" else 2, "PadOptions")
        else:
            inputs.append(self.constant(f"{name}/least", np.full(1, least, np.float32)))
            self.operator("PADV2", inputs, padded, 1, "PadV2Options")
        return padded

    def activation(self, low: float, high: float) -> int | None:
        """The fused activation of a clip; None if TFLite has none."""
        kinds = self.schema.ActivationFunctionType
        known = {
            (-np.inf, np.inf): kinds.NONE,
            (0, np.inf): kinds.RELU,
            (0, 6): kinds.RELU6,
        }
        return known.get((low, high))

    def _signature(self) -> Any:
        """The named inputs and outputs, for tools that use names: image -> scores."""
        signature = self.schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = SIGNATURE, 0

        def named(name: str, number: int) -> Any:
            entry = self.schema.TensorMapT()
            entry.name, entry.tensorIndex = name, int(number)
            return entry

        signature.inputs = [named("image", self.graph.inputs[0])]
        signature.outputs = [named("scores", self.graph.outputs[0])]
        return signature

    def write(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Writes the file, with JSON values as metadata inside."""
        import flatbuffers

        entry = self.schema.MetadataT()
        entry.name = METADATA
        entry.buffer = self._buffer(json.dumps(metadata, sort_keys=True).encode())
        self.model.metadata.append(entry)
        self.model.signatureDefs = [self._signature()]
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        path.write_bytes(bytes(builder.Output()))


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata inside a file that this module wrote.

    Raises:
      ExportError: the file has none, or LiteRT is not installed.
    """
    require()
    from ai_edge_litert import schema_py_generated as schema

    model: Any = schema.Model.GetRootAsModel(path.read_bytes(), 0)
    for number in range(model.MetadataLength()):
        entry = model.Metadata(number)
        if entry.Name().decode() == METADATA:
            return json.loads(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
    raise ExportError(f"{path} has no metadata of this project.")
