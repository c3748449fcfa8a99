"""TFLite files as graphs in this project's terms: operations, tensors, weights, quantisation.

No name in a TFLite file is reliable, so the operations are read in order. Quantised weights become
real = scale * (q - zero_point) (Jacob et al. 2017, arXiv 1712.05877, section 2.1), with one scale
per tensor or per output channel.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mobilenet.models.pretrained.weights import PretrainedError, check_size

# Operations that do not change values, as far as the network's arithmetic is concerned.
_TRANSPARENT = ("QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE", "SOFTMAX")
_POOLS = ("MEAN", "AVERAGE_POOL_2D")


class Integers(NamedTuple):
    """The codes of a quantised weight or bias: real = scale * (codes - zero_point).

    `codes` keep the file's type, with this project's order of axes. `scale` (float32) and
    `zero_point` (int64) are [1], or have one value for each index of the last axis.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray


class Tensor(NamedTuple):
    """A tensor as the file describes it: shape, type (such as `UINT8`) and quantisation.

    `scale` (float32) and `zero_point` (int64) are [n], with n = 0 if it is not quantised.
    """

    shape: tuple[int, ...]
    kind: str
    scale: np.ndarray
    zero_point: np.ndarray


class Step(NamedTuple):
    """An operation of the file; tensors are given by number, constants among the inputs.

    `keeps_axes` belongs to MEAN: the axes over which it averages stay, with size 1. `window` is
    (height, width) of a pooling.
    """

    kind: str
    inputs: tuple[int, ...]
    output: int
    keeps_axes: bool = False
    window: tuple[int, int] = (0, 0)


class Convolution(NamedTuple):
    """A convolution or dense layer: kernel in this project's layout, input, output and settings.

    `pads` are (size, before, after) along the height of the input. If the file is quantised,
    `integers` and `bias_integers` are the codes from which `kernel` and `bias` were dequantised.
    """

    kernel: np.ndarray
    bias: np.ndarray
    source: int
    target: int
    strides: int
    pads: tuple[int, int, int]
    relu6: bool
    dense: bool
    integers: Integers | None = None
    bias_integers: Integers | None = None


class Graph(NamedTuple):
    """The computation of a file; tensors are given by number.

    `convolutions` are in order. `sums` maps a tensor to its two terms, `pooled` a tensor to the one
    that it is the mean of. `image` is the input, of `size` pixels along each side. `quantised` says
    whether any weight was quantised. `steps` are all operations of the file, and `tensors` are
    their inputs and outputs.
    """

    convolutions: list[Convolution]
    sums: dict[int, tuple[int, int]]
    pooled: dict[int, int]
    image: int
    size: int
    quantised: bool
    steps: list[Step]
    tensors: dict[int, Tensor]


def load_graph(path: Path) -> Graph:
    """`read_graph` of a file.

    Raises:
      PretrainedError: as `read_graph`; the file is not a TFLite file; or the package that reads
        them is not installed.
    """
    return read_graph(load(path), path.name)


def load(path: Path) -> bytes:
    """A TFLite file's bytes.

    Raises:
      PretrainedError: the file is not a TFLite file, or the package that reads them is not
        installed.
    """
    try:
        import tflite
    except ImportError as error:
        raise PretrainedError(
            "Reading TFLite files needs a package that is not installed; "
            "`pip install -e '.[convert]'` in the checkout brings it."
        ) from error
    data = path.read_bytes()
    if len(data) < 8 or not tflite.Model.ModelBufferHasIdentifier(data, 0):
        raise PretrainedError(f"{path.name} is not a TFLite file: it has no TFL3 at byte 4.")
    return data


def read_graph(data: bytes, file: str) -> Graph:
    """The operations of a TFLite file in this module's terms.

    Raises:
      PretrainedError: the file is truncated or damaged, or has operations that no MobileNetV2 has.
    """
    try:
        return _Reader(data, file).read()
    except PretrainedError:
        raise
    # Offsets in a damaged buffer can raise any exception.
    except Exception as error:
        raise PretrainedError(
            f"{file} is truncated or damaged: {str(error).rstrip('.')}."
        ) from error


class _Reader:
    """Reads the operations of a file's first subgraph in order."""

    def __init__(self, data: bytes, file: str) -> None:
        import tflite

        self._lib: Any = tflite  # generated code, opaque to type checkers
        self._model: Any = tflite.Model.GetRootAsModel(data, 0)
        self._graph: Any = self._model.Subgraphs(0)
        self._file = file
        self._held = len(data)
        self._declared = 0
        self._quantised = False
        self._operators = _names(tflite.BuiltinOperator)
        self._types = _names(tflite.TensorType)
        # Tensor -> the tensor that it copies, as far as arithmetic is concerned; padding of PAD.
        self._same: dict[int, int] = {}
        self._padded: dict[int, tuple[int, int]] = {}

    def read(self) -> Graph:
        """The graph in this project's terms."""
        graph = self._graph
        (image,) = graph.InputsAsNumpy()
        _, size, width, channels = self._shape(image)
        if size != width or channels not in (1, 3):
            raise PretrainedError(
                f"{self._file} takes images of {self._shape(image)}; this project's images are "
                "square, and RGB or grey."
            )
        convolutions: list[Convolution] = []
        sums: dict[int, tuple[int, int]] = {}
        pooled: dict[int, int] = {}
        steps: list[Step] = []
        for number in range(graph.OperatorsLength()):
            operator = graph.Operators(number)
            code = self._model.OperatorCodes(operator.OpcodeIndex())
            # Old files store the code in a byte field, new files in both fields or the wide one.
            kind = self._operators[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            inputs = [int(i) for i in operator.InputsAsNumpy()]
            (output,) = (int(i) for i in operator.OutputsAsNumpy())
            steps.append(self._step(kind, operator, inputs, output))
            if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
                convolutions.append(self._convolution(kind, operator, inputs, output))
            elif kind == "ADD":
                if self._relu6(self._options(operator, self._lib.AddOptions()), kind):
                    raise PretrainedError(f"{self._file}: a sum ends in RELU6; it must be linear.")
                sums[output] = (self._origin(inputs[0]), self._origin(inputs[1]))
            elif kind in _POOLS:
                pooled[output] = self._origin(inputs[0])
            elif kind == "PAD":
                rows = self._constant(inputs[1]).reshape(-1, 2)
                if not np.array_equal(rows[1], rows[2]) or rows[[0, 3]].any():
                    raise PretrainedError(f"{self._file} pads by {rows.tolist()}.")
                self._same[output] = self._origin(inputs[0])
                self._padded[output] = (int(rows[1][0]), int(rows[1][1]))
            elif kind == "RELU6" and convolutions:
                last = convolutions[-1]
                if self._origin(inputs[0]) != last.target or last.relu6:
                    raise PretrainedError(f"{self._file} has a RELU6 that follows no convolution.")
                convolutions[-1] = last._replace(target=output, relu6=True)
            elif kind in _TRANSPARENT:
                self._same[output] = self._origin(inputs[0])
            else:
                raise PretrainedError(
                    f"{self._file} has the operation {kind}, which no MobileNetV2 has; it holds "
                    "another network."
                )
        used = {n for step in steps for n in (*step.inputs, step.output) if n >= 0}
        return Graph(
            convolutions,
            sums,
            pooled,
            self._origin(int(image)),
            size,
            self._quantised,
            steps,
            {number: self._tensor(number) for number in sorted(used)},
        )

    def _step(self, kind: str, operator: Any, inputs: list[int], output: int) -> Step:
        step = Step(kind, tuple(inputs), output)
        if kind == "MEAN":
            options = self._options(operator, self._lib.ReducerOptions())
            return step._replace(keeps_axes=bool(options.KeepDims()))
        if kind == "AVERAGE_POOL_2D":
            options = self._options(operator, self._lib.Pool2DOptions())
            return step._replace(window=(options.FilterHeight(), options.FilterWidth()))
        return step

    def _tensor(self, number: int) -> Tensor:
        found = self._graph.Tensors(number)
        scale, zero_point = self._grid(found)
        shape = tuple(int(found.Shape(axis)) for axis in range(found.ShapeLength()))
        return Tensor(shape, self._types[found.Type()], scale, zero_point)

    def _grid(self, tensor: Any) -> tuple[np.ndarray, np.ndarray]:
        """Scales (float32) and zero points (int64) of a tensor: none, one, or one per index."""
        quantisation = tensor.Quantization()
        if quantisation is None or not quantisation.ScaleLength():
            return np.zeros(0, np.float32), np.zeros(0, np.int64)
        scale = quantisation.ScaleAsNumpy().astype(np.float32)
        if not quantisation.ZeroPointLength():
            return scale, np.zeros(len(scale), np.int64)
        return scale, quantisation.ZeroPointAsNumpy().astype(np.int64)

    def _integers(self, tensor: int, axes: Sequence[int]) -> Integers | None:
        """A constant's codes, with its axes in the given order; None if it is not quantised."""
        found = self._graph.Tensors(self._origin(tensor))
        scale, zero_point = self._grid(found)
        if not len(scale):
            return None
        return Integers(self._values(tensor).transpose(axes), scale, zero_point)

    def _convolution(self, kind: str, operator: Any, inputs: list[int], output: int) -> Convolution:
        kernel = self._constant(inputs[1])
        bias = inputs[2] if len(inputs) > 2 else -1
        if kind == "FULLY_CONNECTED":
            options = self._options(operator, self._lib.FullyConnectedOptions())
            axes, strides, pads = (1, 0), 1, (1, 0, 0)
        else:
            options = self._options(
                operator,
                self._lib.Conv2DOptions()
                if kind == "CONV_2D"
                else self._lib.DepthwiseConv2DOptions(),
            )
            # OHWI, and 1HWC for depthwise kernels.
            axes = (1, 2, 3, 0) if kind == "CONV_2D" else (1, 2, 0, 3)
            strides = int(options.StrideH())
            if (options.StrideW(), options.DilationHFactor()) != (strides, 1):
                raise PretrainedError(
                    f"{self._file}: a convolution has strides {strides} x {options.StrideW()} and "
                    f"dilation {options.DilationHFactor()}; MobileNetV2's are square and dense."
                )
            pads = self._pads(inputs[0], kernel.shape[1], strides, options.Padding())
        kernel = kernel.transpose(axes)
        return Convolution(
            kernel=kernel,
            bias=np.zeros(kernel.shape[-1], np.float32) if bias < 0 else self._constant(bias),
            source=self._origin(inputs[0]),
            target=output,
            strides=strides,
            pads=pads,
            relu6=self._relu6(options, kind),
            dense=kind == "FULLY_CONNECTED",
            integers=self._integers(inputs[1], axes),
            bias_integers=None if bias < 0 else self._integers(bias, (0,)),
        )

    def _pads(self, tensor: int, kernel: int, strides: int, padding: int) -> tuple[int, int, int]:
        before, after = self._padded.get(tensor, (0, 0))
        size = self._shape(self._origin(tensor))[1]
        if padding == self._lib.Padding.SAME:
            if (before, after) != (0, 0):
                raise PretrainedError(f"{self._file} pads the input of a convolution twice.")
            total = max((-(-size // strides) - 1) * strides + kernel - size, 0)
            before, after = total // 2, total - total // 2
        return size, before, after

    def _relu6(self, options: Any, kind: str) -> bool:
        known = {
            self._lib.ActivationFunctionType.NONE: False,
            self._lib.ActivationFunctionType.RELU6: True,
        }
        activation = options.FusedActivationFunction()
        if activation not in known:
            name = _names(self._lib.ActivationFunctionType)[activation]
            raise PretrainedError(
                f"{self._file}: a {kind} ends in {name}; MobileNetV2 has RELU6 or nothing."
            )
        return known[activation]

    def _options(self, operator: Any, options: Any) -> Any:
        table = operator.BuiltinOptions()
        if table is not None:
            options.Init(table.Bytes, table.Pos)
        return options

    def _origin(self, tensor: int) -> int:
        while tensor in self._same:
            tensor = self._same[tensor]
        return int(tensor)

    def _shape(self, tensor: int) -> list[int]:
        return [int(n) for n in self._graph.Tensors(tensor).ShapeAsNumpy()]

    def _values(self, tensor: int) -> np.ndarray:
        """A constant's numbers as stored in the file: [shape]."""
        found = self._graph.Tensors(self._origin(tensor))
        kind = self._types[found.Type()]
        if kind not in _DTYPES:
            raise PretrainedError(f"{self._file}: a weight is of type {kind}.")
        raw = self._model.Buffers(found.Buffer()).DataAsNumpy()
        shape = self._shape(self._origin(tensor))
        # Several operations may share a buffer, and each allocates its own copy of the numbers.
        self._declared += 4 * math.prod(shape)
        check_size(self._file, self._declared, self._held)
        if kind == "INT4":
            return self._nibbles(raw, shape, found)
        dtype = np.dtype(_DTYPES[kind])
        if not isinstance(raw, np.ndarray) or raw.size != math.prod(shape) * dtype.itemsize:
            size = getattr(raw, "size", 0)
            raise PretrainedError(
                f"{self._file} is truncated, or computes its weights: {found.Name().decode()!r} "
                f"has {size:,} bytes instead of {math.prod(shape) * dtype.itemsize:,}."
            )
        return np.frombuffer(raw.tobytes(), dtype).reshape(shape)

    def _nibbles(self, raw: Any, shape: list[int], tensor: Any) -> np.ndarray:
        """Integers of four bits, two per byte, the first in the lower half."""
        count = math.prod(shape)
        if not isinstance(raw, np.ndarray) or raw.size != -(-count // 2):
            raise PretrainedError(
                f"{self._file} is truncated: {tensor.Name().decode()!r} has "
                f"{getattr(raw, 'size', 0):,} bytes instead of {-(-count // 2):,}."
            )
        halves = np.stack([raw & 15, raw >> 4], axis=-1).ravel()[:count].astype(np.int8)
        return (np.where(halves > 7, halves - 16, halves).astype(np.int8)).reshape(shape)

    def _constant(self, tensor: int) -> np.ndarray:
        """A constant's numbers, dequantised: float32 [shape], or integers if not quantised."""
        values = self._values(tensor)
        found = self._graph.Tensors(self._origin(tensor))
        scale, zero_point = self._grid(found)
        if not len(scale):
            return values if values.dtype.kind in "iu" else values.astype(np.float32)
        self._quantised = True
        # One scale per tensor, or one for each index of the quantised dimension.
        along = [1] * values.ndim
        if len(scale) > 1:
            along[found.Quantization().QuantizedDimension()] = len(scale)
        centred = values.astype(np.int64) - zero_point.reshape(along)
        return centred.astype(np.float32) * scale.reshape(along)


_DTYPES = {
    "FLOAT32": "<f4",
    "FLOAT16": "<f2",
    "INT4": "i1",  # half a byte
    "INT8": "i1",
    "UINT8": "u1",
    "INT32": "<i4",
    "INT64": "<i8",
}


def _names(constants: type) -> dict[int, str]:
    return {value: name for name, value in vars(constants).items() if name.isupper()}
