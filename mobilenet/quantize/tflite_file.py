"""Reads quantised TFLite files (int8 and uint8) as integer networks: `integer.Graph`.

Each operation of the file becomes one of `mobilenet.quantize.integer`, with the same codes, scales,
zero points and clipping. Tensors are named by their numbers in the file ("56"), as TFLite's
interpreters list them. The softmax at the end is left out, so the network's output is the codes of
the logits.
"""

from pathlib import Path

import numpy as np

from mobilenet.models.pretrained import tflite_graph
from mobilenet.models.pretrained.weights import PretrainedError
from mobilenet.quantize import integer

_RANGES = {"INT8": (-128, 127), "UINT8": (0, 255), "INT16": (-(1 << 15), (1 << 15) - 1)}


def read(path: Path) -> integer.Graph:
    """Reads a quantised TFLite classifier.

    Args:
      path: of a file with the operations that `mobilenet.models.pretrained.tflite_graph` supports.

    Returns:
      The network from the codes of images [B, H, W, 3] to the codes of logits [B, classes]. Its
      input is the file's; if the file takes float images, it is the tensor that they are quantised
      to.

    Raises:
      PretrainedError: the file is not a TFLite file, is truncated, is not fully quantised, or has
        an operation, or a form of one, for which there is no integer operation.
    """
    graph = tflite_graph.load_graph(path)
    try:
        return _Translation(graph, path.name).graph()
    except integer.IntegerError as error:
        raise PretrainedError(f"{path.name} is not an integer network: {error}") from error


class _Translation:
    def __init__(self, graph: tflite_graph.Graph, file: str) -> None:
        self._tensors = graph.tensors
        self._steps = graph.steps
        self._convolutions = {found.target: found for found in graph.convolutions}
        self._file = file
        # Tensor -> the tensor with its codes: reshaped and padded tensors are not computed.
        self._same: dict[int, int] = {}
        self._grids: dict[str, integer.Grid] = {}
        self._input = graph.image
        self._shape = (graph.size, graph.size, graph.tensors[graph.image].shape[3])

    def graph(self) -> integer.Graph:
        operations: list[integer.Operation] = []
        output = self._input
        for step in self._steps:
            if step.kind in ("SOFTMAX", "DEQUANTIZE"):
                output = self._resolve(step.inputs[0])
                break
            if step.kind == "QUANTIZE" and self._tensors[step.inputs[0]].kind == "FLOAT32":
                if step.inputs[0] != self._input:
                    raise self._error("computes some operations in float")
                output = self._input = step.output
            elif step.kind in ("RESHAPE", "SQUEEZE", "PAD"):
                output = self._same[step.output] = self._resolve(step.inputs[0])
            else:
                operations.append(self._operation(step))
                output = step.output
        self._name(self._input)
        return integer.Graph(
            tuple(operations), str(self._input), str(output), self._grids, self._shape
        )

    def _operation(self, step: tflite_graph.Step) -> integer.Operation:
        names = {
            "inputs": tuple(self._name(n) for n in step.inputs[: 2 if step.kind == "ADD" else 1]),
            "output": self._name(step.output),
        }
        if step.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            return self._linear(step, names)
        if step.kind == "ADD":
            return integer.Add(**names)
        if step.kind == "QUANTIZE":
            return integer.Rescale(**names)
        if step.kind in ("MEAN", "AVERAGE_POOL_2D"):
            source, target = (self._tensors[n].shape for n in (step.inputs[0], step.output))
            if len(source) != 4 or np.prod(target) != source[0] * source[3]:
                raise self._error(f"pools {list(source)} to {list(target)}, not over whole images")
            if step.kind == "AVERAGE_POOL_2D" and step.window != source[1:3]:
                raise self._error(f"pools {list(source)} in windows of {list(step.window)}")
            rule = "offset" if step.keeps_axes else "centred"
            return integer.Mean(rule="pool" if step.kind == "AVERAGE_POOL_2D" else rule, **names)
        raise self._error(f"has a separate operation {step.kind}")

    def _linear(self, step: tflite_graph.Step, names: dict) -> integer.Operation:
        found = self._convolutions.get(step.output)
        if found is None:
            raise self._error("has a RELU6 that does not belong to a convolution")
        if found.integers is None:
            raise self._error("has weights that are not quantised")
        kernel, scale = found.integers.codes, found.integers.scale.astype(np.float64)
        source = self._tensors[step.inputs[0]]
        if source.kind == "UINT8":
            # TFLite multiplies the scales of an unsigned input and its kernel in float32, others in
            # float64. Otherwise one code in a million would differ.
            scale = (source.scale * found.integers.scale) / source.scale.astype(np.float64)
        low, high = self._clip(step.output) if found.relu6 else (None, None)
        fields = {
            **names,
            "kernel_scale": scale,
            "kernel_zero_point": found.integers.zero_point,
            "bias": None if found.bias_integers is None else found.bias_integers.codes,
            "low": low,
            "high": high,
        }
        # A pooled tensor is [B, C] here, but [B, 1, 1, C] in most files.
        if found.dense or source.shape[1:3] == (1, 1):
            if not found.dense and kernel.shape[:2] != (1, 1):
                raise self._error(f"has a kernel of shape {list(kernel.shape)} after its pooling")
            return integer.Dense(kernel=kernel.reshape(kernel.shape[-2:]), **fields)
        _, before, after = found.pads
        return integer.Convolution(
            kernel=kernel,
            strides=found.strides,
            pads=(before, after, before, after),
            depthwise=step.kind == "DEPTHWISE_CONV_2D",
            **fields,
        )

    def _clip(self, number: int) -> tuple[int, int]:
        """The codes of 0 and 6, in float32 and rounded half away from zero, as in TFLite."""
        grid = self._grids[str(number)]
        six = grid.zero_point + int(np.floor(np.float32(6) / np.float32(grid.scale) + 0.5))
        return grid.zero_point, min(six, grid.high)

    def _name(self, number: int) -> str:
        number = self._resolve(number)
        if str(number) not in self._grids:
            tensor = self._tensors[number]
            if tensor.kind not in _RANGES or len(tensor.scale) != 1:
                raise self._error(
                    f"has a tensor {number} of {tensor.kind} with {len(tensor.scale)} scales; an "
                    "integer network needs one scale per tensor"
                )
            low, high = _RANGES[tensor.kind]
            self._grids[str(number)] = integer.Grid(
                float(tensor.scale[0]), int(tensor.zero_point[0]), low, high
            )
        return str(number)

    def _resolve(self, number: int) -> int:
        while number in self._same:
            number = self._same[number]
        return number

    def _error(self, message: str) -> PretrainedError:
        return PretrainedError(f"{self._file} {message}.")
