"""The runtimes of exported files, each as one class with the same methods, and code differences."""

# The runtimes are extras; types are not checked against them.
# pyright: reportMissingImports=false

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet.quantize import integer


def installed() -> bool:
    """Whether LiteRT can be imported."""
    return importlib.util.find_spec("ai_edge_litert") is not None


class LiteRT:
    """One TFLite file in LiteRT's interpreter, single-threaded.

    Args:
      path: of the file.
      output: number of the tensor that is returned instead of the file's output; None for that.
      kernels: "builtin", or "xnnpack", which applications use by default.
      keep: let `tensor` return every tensor; only with built-in kernels.
    """

    def __init__(
        self, path: Path, output: int | None = None, *, kernels: str = "builtin", keep: bool = False
    ) -> None:
        from ai_edge_litert import interpreter

        resolvers = {
            "builtin": interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            "xnnpack": interpreter.OpResolverType.AUTO,
        }
        data = path.read_bytes()
        self._interpreter: Any = interpreter.Interpreter(
            model_content=data if output is None else with_output(data, output),
            experimental_preserve_all_tensors=keep,
            experimental_op_resolver_type=resolvers[kernels],
            num_threads=1,
        )
        self._interpreter.allocate_tensors()
        (self._given,) = self._interpreter.get_input_details()
        (self._answer,) = self._interpreter.get_output_details()

    @property
    def reads_codes(self) -> bool:
        """Whether the file reads integer codes instead of float numbers."""
        return np.dtype(self._given["dtype"]).kind in "iu"

    def run(self, codes: np.ndarray) -> np.ndarray:
        """Codes [H, W, C] of one image, or float numbers if the file reads these -> its output."""
        self._interpreter.set_tensor(self._given["index"], codes[None])
        self._interpreter.invoke()
        return self.tensor(self._answer["index"])

    def tensor(self, number: int) -> np.ndarray:
        """A tensor after the last image."""
        return np.array(self._interpreter.get_tensor(number))


def with_output(data: bytes, tensor: int) -> bytes:
    """A TFLite file whose only output is replaced by another of its tensors."""
    import tflite

    graph: Any = tflite.Model.GetRootAsModel(data, 0).Subgraphs(0)
    if graph.OutputsLength() != 1:
        raise ValueError(f"the file has {graph.OutputsLength()} outputs instead of one.")
    table = graph._tab  # the generated classes read vectors, but do not expose their positions
    field = table.Offset(8)  # `outputs` is the third field of the schema's SubGraph
    start = table.Vector(field)
    return data[:start] + int(tensor).to_bytes(4, "little", signed=True) + data[start + 4 :]


def compare_operations(
    path: Path,
    graph: integer.Graph,
    given: np.ndarray,
    number: Callable[[str], int] = int,
    *,
    rounding: integer.Rounding = "builtin",
) -> dict[str, dict[str, Any]]:
    """Compares each operation of the executor, run on LiteRT's own tensors, with LiteRT's result.

    So no operation inherits differences of earlier ones.

    Args:
      path: of the file that the graph was read from, or that was written from it.
      graph: the executor's.
      given: input of the file, codes or images, [B, H, W, C].
      number: name of a tensor in the graph -> its number in the file.
      rounding: of the executor; "builtin" is that of the kernels it is compared with.

    Returns:
      Kind of operation -> `difference`.
    """
    runtime = LiteRT(path, keep=True)
    # Pooled tensors are [B, C] here, but [B, 1, 1, C] in most files.
    pooled = {op.output for op in graph.operations if isinstance(op, (integer.Mean, integer.Dense))}

    def tensor(name: str) -> np.ndarray:
        found = runtime.tensor(number(name))
        return found.reshape(1, -1) if name in pooled else found

    found: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {}
    for image in given:
        runtime.run(image)
        for operation in graph.operations:
            theirs = {name: tensor(name) for name in operation.inputs}
            pair = found.setdefault(kind(operation), ([], []))
            pair[0].append(integer.run_op(graph, operation, theirs, rounding=rounding))
            pair[1].append(tensor(operation.output))
    return {name: difference(*pair) for name, pair in found.items()}


class OnnxRuntime:
    """One ONNX file in ONNX Runtime, on one thread of the CPU.

    Args:
      path: of the file.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        self._session: Any = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def run(self, image: np.ndarray) -> np.ndarray:
        """An image [H, W, C], float32, normalised -> logits [1, K]."""
        return self._session.run(None, {"image": image.transpose(2, 0, 1)[None]})[0]


def difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> dict[str, Any]:
    """Differences between two lists of codes: counts, fractions, and sizes in codes."""
    apart = np.concatenate(
        [
            np.abs(mine.astype(np.int64).ravel() - other.astype(np.int64).ravel())
            for mine, other in zip(ours, theirs, strict=True)
        ]
    )
    return {
        "values": apart.size,
        "equal": float((apart == 0).mean()),
        "off_by_one": float((apart == 1).mean()),
        "largest": int(apart.max()),
        "mean": float(apart.mean()),
    }


def kind(operation: integer.Operation) -> str:
    """The name of an operation's kind in result rows."""
    name = type(operation).__name__.lower()
    if isinstance(operation, integer.Convolution):
        return "depthwise" if operation.depthwise else name
    return f"mean ({operation.rule})" if isinstance(operation, integer.Mean) else name
