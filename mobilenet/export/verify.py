"""Compares an exported file with the network of the run: operations, codes, accuracy and speed."""

# LiteRT is an extra; types are not checked against it.
# pyright: reportMissingImports=false

import collections
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet.export import litert, runtimes, tflite_writer
from mobilenet.export.operations import ExportError
from mobilenet.export.runtimes import LiteRT
from mobilenet.quantize import integer

# Float files compute the same sums in another order. This is the largest allowed difference of
# their logits, relative to the largest logit.
FLOAT_BOUND = 1e-3
# Integer files round where the run simulates rounding, layer after layer. These are the allowed
# differences of a probability, on average over images, and in one image.
MEAN_BOUND, LARGEST_BOUND = 0.05, 0.25
# Operations of an integer file that may read or compute float numbers: at its two ends.
_ENDS = ("QUANTIZE", "DEQUANTIZE")


@dataclasses.dataclass(frozen=True)
class FileOperation:
    """One operation of a TFLite file.

    Attributes:
      kind: as the schema names it.
      types: of its input activations, weights and output, such as "INT8".
      activation: the fused one, or "NONE".
      inputs, output: numbers of tensors.
    """

    kind: str
    types: tuple[str, ...]
    activation: str
    inputs: tuple[int, ...]
    output: int


def operations(path: Path) -> list[FileOperation]:
    """The operations of a TFLite file, in order."""
    tflite_writer.require()
    from ai_edge_litert import schema_py_generated as schema

    def name(constants: type, value: int) -> str:
        return next(k for k, v in vars(constants).items() if v == value)

    model: Any = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(path.read_bytes(), 0))
    graph = model.subgraphs[0]
    found = []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        tensors = [graph.tensors[n] for n in (*operator.inputs, *operator.outputs)]
        activation = getattr(operator.builtinOptions, "fusedActivationFunction", 0)
        found.append(
            FileOperation(
                name(schema.BuiltinOperator, code.builtinCode),
                tuple(name(schema.TensorType, tensor.type) for tensor in tensors),
                name(schema.ActivationFunctionType, activation),
                tuple(int(n) for n in operator.inputs),
                int(operator.outputs[0]),
            )
        )
    return found


def tensors(path: Path) -> dict[str, int]:
    """Name -> number of every tensor of a TFLite file."""
    tflite_writer.require()
    from ai_edge_litert import schema_py_generated as schema

    graph: Any = schema.Model.GetRootAsModel(path.read_bytes(), 0).Subgraphs(0)
    return {graph.Tensors(n).Name().decode(): n for n in range(graph.TensorsLength())}


def count_operations(path: Path) -> dict[str, int]:
    """Kinds of operations of a TFLite file, "CONV_2D(INT8,INT4) RELU6" -> how many there are."""
    found: collections.Counter[str] = collections.Counter()
    for operation in operations(path):
        # Of the activations and weights; the last type is the output's.
        types = ",".join(operation.types[:-1][:2])
        fused = "" if operation.activation == "NONE" else f" {operation.activation}"
        found[f"{operation.kind}({types}){fused}"] += 1
    return dict(found)


def float_operations(path: Path) -> list[str]:
    """Kinds of the operations that compute in float; an integer file has none."""
    return [
        operation.kind
        for operation in operations(path)
        if operation.kind not in _ENDS and "FLOAT32" in operation.types
    ]


def compare_operations(
    path: Path, graph: integer.Graph, images: np.ndarray
) -> dict[str, dict[str, Any]]:
    """`runtimes.compare_operations` for a file of this project.

    Args:
      path: of a file that `litert.write_integer` wrote.
      graph: from which it was written.
      images: normalised images [B, H, W, C].

    Raises:
      ExportError: the file lacks a tensor of the graph.
    """
    graph = litert.signed(graph)
    numbers = tensors(path)
    absent = [name for name in graph.grids if name not in numbers]
    if absent:
        raise ExportError(f"{path} has no tensor {absent[0]}; it is the file of another network.")
    given = graph.quantize_input(images) if LiteRT(path).reads_codes else images
    return runtimes.compare_operations(path, graph, given, numbers.__getitem__)


def answers(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    """Outputs of a runtime for images [B, H, W, C], run one after another: [B, K]."""
    return np.concatenate([run(image).reshape(1, -1) for image in images])


def differences(theirs: np.ndarray, ours: np.ndarray) -> dict[str, Any]:
    """Differences between the outputs of two networks for the same images.

    Args:
      theirs, ours: logits [B, K].

    Returns:
      For "logits" and "probabilities" (their softmax): the mean, the 99 % quantile and the largest,
      over images, of the difference of the class that differs most; and "largest_logit" of ours.
    """
    theirs, ours = theirs.astype(np.float64), ours.astype(np.float64)
    found: dict[str, Any] = {"largest_logit": float(np.abs(ours).max())}
    for name, apart in (
        ("logits", theirs - ours),
        ("probabilities", _softmax(theirs) - _softmax(ours)),
    ):
        most = np.abs(apart).max(1)
        found[name] = {
            "mean": float(most.mean()),
            "p99": float(np.quantile(most, 0.99)),
            "largest": float(most.max()),
        }
    return found


def _softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def explain(row: dict[str, Any], *, integer: bool) -> tuple[str, str]:
    """The cause of a row's differences, and a warning if they are above their bound, else "".

    Args:
      row: with `differences`, "format", and for an integer TFLite file "executor".
      integer: whether it is the file of a quantised run.
    """
    if not integer:
        cause = "sums in another order"
        bound = FLOAT_BOUND * max(1.0, row["largest_logit"])
        if row["logits"]["largest"] <= bound:
            return cause, ""
        return "more than rounding: a fault", (
            f"a logit differs by {row['logits']['largest']:.2g}, but the order of sums only "
            f"explains {bound:.2g}: the file is not the run's network"
        )
    if "executor" in row:
        equal = all(part["largest"] <= 1 for part in row["executor"].values())
        cause = "an operation that differs from the executor's: a fault"
        if equal:
            cause = (
                "rounding that grows over the layers: each single operation is within one code of "
                "the integer executor"
            )
    elif row["format"] == "stablehlo":
        cause = "sums in another order, which round to other codes in each layer"
    elif row["format"] == "litert":
        cause = "rounding that grows over the layers, with kernels that round differently"
    else:
        cause = "rounding, or a fault: operations are compared one by one only in .tflite files"
    mean, largest = (row["probabilities"][name] for name in ("mean", "largest"))
    if mean <= MEAN_BOUND and largest <= LARGEST_BOUND:
        return cause, ""
    return cause, (
        f"probabilities differ by {100 * mean:.1f} % on average and {100 * largest:.1f} % in one "
        f"image, more than {100 * MEAN_BOUND:.0f} and {100 * LARGEST_BOUND:.0f} %: measure the "
        "file's own accuracy, and train with quantisation if it is too low"
    )


def latency(
    run: Callable[[np.ndarray], np.ndarray], image: np.ndarray, *, runs: int = 50
) -> dict[str, float]:
    """Milliseconds per image: least, median, 90 % quantile, and the number of runs."""
    for _ in range(max(1, runs // 10)):
        run(image)
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        run(image)
        seconds.append(time.perf_counter() - started)
    return {
        "latency_ms_min": 1e3 * min(seconds),
        "latency_ms_median": 1e3 * float(np.median(seconds)),
        "latency_ms_p90": 1e3 * float(np.quantile(seconds, 0.9)),
        "latency_runs": runs,
    }
