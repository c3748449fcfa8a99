"""Assigns the tensors of a file to a MobileNetV2, whose width follows from the tensors' shapes.

A naming scheme lists a network's tensors as `Slot`s: the name and shape that a tensor has in the
file, and its path in the variables. `fit` tries the widths, takes the one that agrees with most
tensors, and reports tensors that do not agree.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mobilenet.models import cost
from mobilenet.models.mobilenet_v2 import PAPER_BLOCKS, BlockSpec, Plan, plan_blocks
from mobilenet.models.pretrained.weights import PretrainedError, shape_problems

# Published widths first: if several widths give the same channels, the first one is reported.
PUBLISHED_WIDTHS = (1.0, 0.75, 0.5, 0.35, 1.4, 1.3, 0.25, 0.1)
WIDTHS = (
    *PUBLISHED_WIDTHS,
    *(w for w in (k / 100 for k in range(5, 201)) if w not in PUBLISHED_WIDTHS),
)

_PLAN_OPTIONS = tuple(inspect.signature(plan_blocks).parameters)


class Layer(NamedTuple):
    """One convolution with its batch normalisation, or the classifier.

    `name` is the module's path, such as `blocks_1_0/expand`. `role` is stem, expand, depthwise,
    project, head or classifier. `shape` is the kernel's, HWIO or [features, classes]. `number`
    counts blocks from 0 over the whole network; `stage` and `block` are those in the name; all
    three are -1 outside blocks. `expands` says whether the block has an expansion.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    number: int
    stage: int
    block: int
    expands: bool


class Slot(NamedTuple):
    """A tensor's `name` and `shape` in a file, its path in the variables, its axes' new order."""

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    axes: tuple[int, ...] | None = None


class Fitted(NamedTuple):
    """The result of `fit`: the network's settings, plan, number of classes and variables."""

    settings: dict[str, Any]
    plan: Plan
    num_classes: int
    params: dict[str, Any]
    batch_stats: dict[str, Any]


Scheme = Callable[[Sequence[Layer]], list[Slot]]


def layers(plan: Plan, num_classes: int, channels: int = 3, kernel_size: int = 3) -> list[Layer]:
    """The layers of a planned network in order of computation.

    Args:
      plan: without squeeze-and-excitation and projected shortcuts, for which no public naming
        scheme has names.
      num_classes: 0 leaves the classifier out.
      channels: of the images.
      kernel_size: of the depthwise convolutions.
    """
    blocks = {block.name: (number, block) for number, block in enumerate(plan.blocks)}
    found = []
    for layer in cost.layer_costs(plan, (32, 32, channels), num_classes, kernel_size):
        inputs, outputs = layer.in_shape[2], layer.out_shape[2]
        shape: tuple[int, ...] = (1, 1, inputs, outputs)
        if layer.role == "stem":
            shape = (3, 3, inputs, outputs)
        elif layer.role == "depthwise":
            shape = (kernel_size, kernel_size, 1, outputs)
        elif layer.role == "classifier":
            shape = (inputs, outputs)
        name = layer.name.split("/")[0]
        place, expands = (-1, -1, -1), False
        if name in blocks:
            number, block = blocks[name]
            place, expands = (number, block.stage, int(name.split("_")[2])), block.expands
        found.append(Layer(layer.name, layer.role, shape, *place, expands))
    return found


def paper_networks() -> Iterator[tuple[dict[str, Any], Plan]]:
    """Settings and plan of the paper's network at every width, published ones first.

    Below width 1 the head either keeps 1,280 channels (section 4 of the paper) or is narrowed like
    the other layers (`model.shrink_head`, as Hugging Face does with `finegrained_output=False`).
    """
    for width in WIDTHS:
        for shrink in (False, True) if width < 1 else (False,):
            settings: dict[str, Any] = {"model.width_multiplier": width}
            if shrink:
                settings["model.shrink_head"] = True
            yield settings, plan_blocks(width_multiplier=width, shrink_head=shrink)


def table_network(blocks: Sequence[BlockSpec], **model: Any) -> tuple[dict[str, Any], Plan]:
    """Settings and plan of a network with another block table at width 1."""
    settings: dict[str, Any] = {"model.blocks": tuple(tuple(row) for row in blocks)}
    settings |= {f"model.{key}": value for key, value in model.items()}
    return settings, plan_blocks(blocks=blocks, **model)


def planned_network(settings: Mapping[str, Any]) -> tuple[dict[str, Any], Plan]:
    """Settings and plan of the network that a full set of `model.*` settings describes."""
    model = {key.removeprefix("model."): value for key, value in settings.items()}
    options = {key: model[key] for key in _PLAN_OPTIONS if key in model}
    options["blocks"] = [BlockSpec(*row) for row in model.get("blocks", PAPER_BLOCKS)]
    options["stage_strides"] = model.get("stage_strides") or None
    return dict(settings), plan_blocks(**options)


def fit(
    found: Mapping[str, np.ndarray],
    scheme: Scheme,
    networks: Iterable[tuple[dict[str, Any], Plan]],
    *,
    file: str,
    names: str,
    channels: int = 3,
) -> Fitted:
    """Assigns the tensors of a file to the variables of a network.

    Args:
      found: name -> array, of floating dtype, without tensors that belong to no network.
      scheme: the names and shapes that this kind of file uses.
      networks: settings and plan of every candidate.
      file: for messages.
      names: whose names the scheme uses, for messages.
      channels: of the images.

    Raises:
      PretrainedError: tensors are missing, unexpected, of the wrong shape or type.
    """
    shapes = {name: tuple(array.shape) for name, array in found.items()}
    best: tuple[int, dict[str, Any], Plan, int, list[Slot]] | None = None
    classes = None
    for settings, plan in networks:
        if classes is None:
            classes = _count_classes(shapes, scheme, plan)
        slots = scheme(layers(plan, classes, channels))
        score = sum(shapes.get(slot.name) == slot.shape for slot in slots)
        if best is None or score > best[0]:
            best = score, settings, plan, classes, slots
        if score == len(slots):
            break
    assert best is not None
    score, settings, plan, classes, slots = best
    problems = shape_problems(shapes, {slot.name: slot.shape for slot in slots})
    if problems:
        width = settings.get("model.width_multiplier")
        nearest = f"; the nearest is width {width:g}" if score and width else ""
        raise PretrainedError(
            f"{file} is not a MobileNetV2 with {names} names{nearest} ({score} of {len(slots)} "
            f"tensors fit): {problems}."
        )
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for slot in slots:
        array = np.asarray(found[slot.name])
        if not np.issubdtype(array.dtype, np.floating) and array.dtype.name != "bfloat16":
            raise PretrainedError(
                f"{file}: {slot.name} is of type {array.dtype}; weights must be floating point."
            )
        array = array if slot.axes is None else array.transpose(slot.axes)
        put(variables, slot.path, np.array(array, np.float32, order="C"))
    settings = {**settings, "model.num_classes": classes}
    return Fitted(settings, plan, classes, variables["params"], variables["batch_stats"])


def _count_classes(shapes: Mapping[str, tuple[int, ...]], scheme: Scheme, plan: Plan) -> int:
    """The number of classes from the classifier's kernel, or from its bias; 0 without both."""
    for slot in scheme(layers(plan, num_classes=1)):
        if slot.path[1] == "classifier" and len(shapes.get(slot.name, ())) == len(slot.shape):
            order = slot.axes or tuple(range(len(slot.shape)))
            return shapes[slot.name][order[-1]]
    return 0


def put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Sets a leaf of a nested dictionary; creates the dictionaries on its path."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def leaf(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
    """A leaf of a nested dictionary."""
    for name in path:
        tree = tree[name]
    return tree


def variable_paths(layer: Layer) -> dict[str, tuple[str, ...]]:
    """Paths of a layer's variables, by name: the kernel's and the four of BN, or the bias's."""
    module = tuple(layer.name.split("/"))
    if layer.role == "classifier":
        return {name: ("params", *module, name) for name in ("kernel", "bias")}
    return {
        "kernel": ("params", *module, "conv", "kernel"),
        "scale": ("params", *module, "bn", "scale"),
        "bias": ("params", *module, "bn", "bias"),
        "mean": ("batch_stats", *module, "bn", "mean"),
        "var": ("batch_stats", *module, "bn", "var"),
    }


def padding_convention(pads: Sequence[tuple[int, int, int]]) -> str | None:
    """The padding convention of a network, from the padding of its convolutions of stride 2.

    Args:
      pads: (size, before, after) along one side of each input of a 3x3 convolution of stride 2.

    Returns:
      "SAME" if all pad as TensorFlow: (0, 1) at an even size, (1, 1) at an odd one. "SYMMETRIC" if
      all pad (1, 1) as PyTorch. If all sizes are odd, both agree, and the result is "SAME". None
      if neither holds.
    """
    if all((before, after) == (size % 2, 1) for size, before, after in pads):
        return "SAME"
    if all((before, after) == (1, 1) for _, before, after in pads):
        return "SYMMETRIC"
    return None
