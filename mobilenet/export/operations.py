"""A float network as a list of operations, derived from its trace; all file formats start from it.

In evaluation, the modules of every network consist of a dozen primitives of JAX. This module turns
these into operations that runtimes support: it computes constants, folds normalisation into the
convolution before it, and turns clips into the activation of the operation before them.

    program = trace(lambda x: network.apply(variables, x, False), (224, 224, 3))
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core


class ExportError(ValueError):
    """A format cannot hold a network, or an extra is missing; the message says which."""


def require(files: str, **packages: str) -> None:
    """Refuses to continue without the packages that write a kind of files.

    Args:
      files: name of the kind.
      packages: module -> its name in messages.

    Raises:
      ExportError: one of them is not installed.
    """
    for module, name in packages.items():
        if importlib.util.find_spec(module) is None:
            raise ExportError(
                f"{files} need {name}, which is not installed; `pip install -e '.[export]'` in "
                "the checkout brings it."
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """One step. Tensors have names; their shapes, without the batch, are in `Program.shapes`.

    Attributes:
      kind: one of these, with their `values`; tensors are [B, H, W, C] or [B, C]:
        "conv": kernel [k, k, C_in, C], or [k, k, 1, C] when `depthwise`; bias [C]; strides,
          dilation, pads (top, bottom, left, right), depthwise.
        "dense": kernel [C_in, C], bias [C].
        "affine": scale and shift, scalars or [C]: x * scale + shift.
        "add", "multiply": two tensors; of a product the second may be [B, C] or [B, 1, 1, C].
        "mean": over height and width, to [B, C]. "expand": [B, C] to [B, 1, 1, C].
        "max_pool": window, strides, pads; padding is never the largest value.
        "clip": low, high, either of which may be infinite.
        "sigmoid"; "hard_swish": x * clip(x + 3, 0, 6) / 6.
      inputs: names of the tensors it reads.
      output: name of the tensor it computes.
      values: see above.
      clip: (low, high) to which the result is clipped, or None.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    values: Mapping[str, Any]
    clip: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A network: operations in order, names of its input and output, and shapes without batch."""

    operations: tuple[Operation, ...]
    input: str
    output: str
    shapes: Mapping[str, tuple[int, ...]]


def trace(apply: Callable[[Any], Any], image_shape: tuple[int, int, int]) -> Program:
    """The operations of a function of normalised images.

    Args:
      apply: float32 [B, H, W, C] to [B, K], convolutions in the form "grouped".
      image_shape: of an image.

    Raises:
      ExportError: the function uses a primitive without an operation; the message names it.
    """
    # Two images, so that the axis of the batch differs from axes of length one.
    image = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    closed = jax.make_jaxpr(apply)(image)
    reader = _Reader(image_shape)
    (output,) = reader.run(closed.jaxpr, closed.consts, ["image"])
    found = _fuse(reader.operations, output)
    return Program(tuple(found), "image", output, reader.shapes)


_ELEMENTWISE = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
}


class _Reader:
    """Values are names of tensors, or NumPy arrays if they do not depend on the image."""

    def __init__(self, image_shape: tuple[int, ...]) -> None:
        self.operations: list[Operation] = []
        self.shapes: dict[str, tuple[int, ...]] = {"image": tuple(image_shape)}

    def run(self, jaxpr: Any, consts: Any, args: list[Any]) -> list[Any]:
        values: dict[Any, Any] = {}
        values.update(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
        values.update(zip(jaxpr.invars, args, strict=True))

        def read(variable: Any) -> Any:
            if isinstance(variable, core.Literal):
                return np.asarray(variable.val)
            return values[variable]

        for equation in jaxpr.eqns:
            inputs = [read(variable) for variable in equation.invars]
            inner = next(
                (equation.params[k] for k in ("jaxpr", "call_jaxpr") if k in equation.params), None
            )
            if inner is not None:
                # One class or two, open and closed: that depends on the version of JAX.
                program, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
                results = self.run(program, consts, inputs)
            else:
                results = [self._step(equation, inputs)]
            values.update(zip(equation.outvars, results, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _step(self, equation: Any, inputs: list[Any]) -> Any:
        name, params = equation.primitive.name, equation.params
        shape = equation.outvars[0].aval.shape
        dynamic = [x for x in inputs if isinstance(x, str)]
        if not dynamic:
            return self._constant(equation, inputs)
        if name in ("convert_element_type", "copy", "stop_gradient"):
            return dynamic[0]
        make = lambda kind, *names, **values: self._make(kind, names, shape, values)  # noqa: E731
        if name in _ELEMENTWISE:
            if len(dynamic) == 2:
                return self._binary(name, inputs, shape)
            return self._with_constant(name, inputs, shape)
        x = dynamic[0]
        if name == "conv_general_dilated" and isinstance(inputs[1], np.ndarray):
            kernel, groups = inputs[1], params["feature_group_count"]
            strides, dilation = set(params["window_strides"]), set(params["rhs_dilation"])
            depthwise = groups == kernel.shape[-1] and kernel.shape[2] == 1 and groups > 1
            numbers = params["dimension_numbers"]
            if (
                len(strides) == len(dilation) == 1
                and (groups == 1 or depthwise)
                and set(params["lhs_dilation"]) == {1}
                and numbers.lhs_spec == numbers.out_spec == (0, 3, 1, 2)
                and numbers.rhs_spec == (3, 2, 0, 1)
            ):
                return make(
                    "conv",
                    x,
                    kernel=kernel,
                    bias=np.zeros(kernel.shape[-1], np.float32),
                    strides=int(strides.pop()),
                    dilation=int(dilation.pop()),
                    pads=tuple(int(n) for pair in params["padding"] for n in pair),
                    depthwise=depthwise,
                )
        if name == "dot_general" and isinstance(inputs[1], np.ndarray):
            if params["dimension_numbers"] == (((1,), (0,)), ((), ())) and len(shape) == 2:
                bias = np.zeros(shape[1], np.float32)
                return make("dense", x, kernel=inputs[1], bias=bias)
        if name == "reduce_sum" and params["axes"] == (1, 2) and len(self.shapes[x]) == 3:
            mean = make("mean", x)
            number = np.float32(np.prod(self.shapes[x][:2]))
            return self._make("affine", (mean,), shape, {"scale": number, "shift": np.float32(0)})
        if name == "reduce_window_max":
            windows, strides = params["window_dimensions"], params["window_strides"]
            if windows[0] == windows[3] == 1 and windows[1] == windows[2]:
                pads = tuple(int(n) for pair in params["padding"][1:3] for n in pair)
                return make(
                    "max_pool", x, window=int(windows[1]), strides=int(strides[1]), pads=pads
                )
        if name == "logistic":
            return make("sigmoid", x)
        if name in ("reshape", "broadcast_in_dim", "squeeze"):
            before = self.shapes[x]
            if shape[1:] == before:
                return x
            if len(before) == 1 and shape[1:] == (1, 1, *before):
                return make("expand", x)
        raise ExportError(
            f"The network computes {name} of {[list(v.aval.shape) for v in equation.invars]}, "
            "for which the files have no operation; export it as StableHLO."
        )

    def _constant(self, equation: Any, inputs: list[Any]) -> np.ndarray:
        name = equation.primitive.name
        if name in _ELEMENTWISE:
            return _ELEMENTWISE[name](*inputs)
        if name == "rsqrt":
            return (1 / np.sqrt(inputs[0].astype(np.float64))).astype(np.float32)
        if name == "convert_element_type":
            return inputs[0].astype(equation.params["new_dtype"])
        return np.asarray(equation.primitive.bind(*inputs, **equation.params))

    def _make(self, kind: str, names: tuple[str, ...], shape: Any, values: dict[str, Any]) -> str:
        name = f"{kind}_{len(self.operations)}"
        self.operations.append(Operation(kind, names, name, values))
        self.shapes[name] = tuple(int(n) for n in shape[1:])
        return name

    def _binary(self, name: str, inputs: list[str], shape: Any) -> str:
        first, second = (self.shapes[x] for x in inputs)
        if name == "add" and first == second:
            return self._make("add", tuple(inputs), shape, {})
        if name == "mul":
            if len(first) == 3 and first[:2] == (1, 1):
                inputs, first, second = inputs[::-1], second, first
            if second in (first, (1, 1, *first[-1:])):
                return self._make("multiply", tuple(inputs), shape, {})
        raise ExportError(
            f"The network computes {name} of {list(first)} and {list(second)}, for which the files "
            "have no operation; export it as StableHLO."
        )

    def _with_constant(self, name: str, inputs: list[Any], shape: Any) -> str:
        first = isinstance(inputs[0], str)
        x, constant = inputs if first else inputs[::-1]
        if constant.size > 1 and constant.size != constant.shape[-1]:
            raise ExportError(
                f"The network computes {name} with a constant of {list(constant.shape)}; the files "
                "only support one value per channel."
            )
        constant = constant.reshape(-1) if constant.size > 1 else constant.reshape(())
        if name in ("max", "min") and constant.size == 1:
            bounds = (float(constant), np.inf) if name == "max" else (-np.inf, float(constant))
            return self._make("clip", (x,), shape, {"low": bounds[0], "high": bounds[1]})
        one, zero = np.float32(1), np.float32(0)
        affine = {
            "add": (one, constant),
            "mul": (constant, zero),
            "sub": (one, -constant) if first else (-one, constant),
            "div": (one / constant if first and name == "div" else None, zero),
        }.get(name)
        if affine is None or affine[0] is None:
            raise ExportError(f"The network computes {name} with a constant; export as StableHLO.")
        scale, shift = (np.asarray(part, np.float32) for part in affine)
        return self._make("affine", (x,), shape, {"scale": scale, "shift": shift})


def _fuse(operations: list[Operation], output: str) -> list[Operation]:
    """Merges an operation into the one before it if nothing else reads the tensor between them."""
    found = list(operations)
    changed = True
    while changed:
        changed = False
        readers: dict[str, int] = {output: 1}
        for operation in found:
            for name in operation.inputs:
                readers[name] = readers.get(name, 0) + 1
        made = {operation.output: index for index, operation in enumerate(found)}
        for index, operation in enumerate(found):
            before = made.get(operation.inputs[0]) if operation.inputs else None
            if before is None:
                continue
            if readers[operation.inputs[0]] == 1:
                merged = _merge(found[before], operation)
                if merged is not None:
                    # At the position of the second: its other inputs exist there.
                    found[index] = dataclasses.replace(merged, output=operation.output)
                    del found[before]
                    changed = True
                    break
            swish = _hard_swish(found, made, readers, operation)
            if swish is not None:
                found[index] = swish[0]
                found = [other for other in found if other.output not in swish[1]]
                changed = True
                break
    return found


def _merge(first: Operation, second: Operation) -> Operation | None:
    """One operation that computes both, or None."""
    values = dict(first.values)
    if second.kind == "affine":
        scale, shift = second.values["scale"], second.values["shift"]
        if first.clip is not None:
            return None
        if first.kind in ("conv", "dense"):
            values["kernel"] = (values["kernel"] * scale).astype(np.float32)
            values["bias"] = (values["bias"] * scale + shift).astype(np.float32)
            return dataclasses.replace(first, values=values)
        if first.kind == "affine":
            # For a mean, which is a sum times 1 / n here, this results in exactly 1.
            values["scale"] = np.asarray(values["scale"] * scale, np.float32)
            values["shift"] = np.asarray(values["shift"] * scale + shift, np.float32)
            return dataclasses.replace(first, values=values)
        if first.kind == "mean" and np.all(np.abs(scale - 1) < 1e-6) and not np.any(shift):
            return first
    if second.kind == "clip":
        low, high = second.values["low"], second.values["high"]
        if first.kind == "clip":
            values["low"] = min(max(first.values["low"], low), high)
            values["high"] = max(min(first.values["high"], high), low)
            return dataclasses.replace(first, values=values)
        if first.kind in ("conv", "dense", "add"):
            if first.clip is not None:
                low, high = min(max(first.clip[0], low), high), min(first.clip[1], high)
            return dataclasses.replace(first, clip=(low, high))
    return None


def _hard_swish(
    found: list[Operation], made: dict[str, int], readers: dict[str, int], last: Operation
) -> tuple[Operation, set[str]] | None:
    """x * clip(x + 3, 0, 6) / 6 as one operation, and the tensors that it replaces, or None.

    `last` is the division.
    """

    def before(name: str, kind: str) -> Operation | None:
        index = made.get(name)
        if index is None or found[index].kind != kind or readers[name] != 1:
            return None
        return found[index]

    def shifted(name: str) -> tuple[str, set[str]] | None:
        """If a tensor is clip(x + 3, 0, 6): x, and the tensors in between."""
        clip = before(name, "clip")
        if clip is None or (clip.values["low"], clip.values["high"]) != (0, 6):
            return None
        plus = before(clip.inputs[0], "affine")
        if plus is None or plus.values["scale"].ndim or plus.values["shift"].ndim:
            return None
        if (plus.values["scale"], plus.values["shift"]) != (1, 3):
            return None
        return plus.inputs[0], {clip.output, plus.output}

    if last.kind != "affine" or last.values["scale"].ndim or np.any(last.values["shift"]):
        return None
    if abs(float(last.values["scale"]) * 6 - 1) > 1e-6:
        return None
    product = before(last.inputs[0], "multiply")
    for x, gate in (product.inputs, product.inputs[::-1]) if product else ():
        inner = shifted(gate)
        if product is not None and inner is not None and inner[0] == x:
            replaced = dataclasses.replace(last, kind="hard_swish", inputs=(x,), values={})
            return replaced, {*inner[1], product.output}
    return None
