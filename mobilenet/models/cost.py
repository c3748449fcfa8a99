"""Parameters, multiply-adds and activation memory of a plan, without building the network.

Counts follow the released MobileNetV2 code: one MAC is one multiply-add of a convolution, a dense
layer or a squeeze-and-excitation layer. Batch normalisation, activations, pooling, gating and the
addition of the shortcut are not counted. Published values of every count are in
`tests/models/reference/` and `experiments/reference/`.
"""

import dataclasses
from collections.abc import Iterable
from typing import Literal

import numpy as np

from mobilenet.models.mobilenet_v2 import BlockPlan, Plan

Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """One convolution or dense layer, with the batch normalisation that follows it.

    Attributes:
      name: path of the module in the network, such as `blocks_1_0/depthwise`.
      role: stem, expand, depthwise, project, shortcut, se, head or classifier.
      in_shape, out_shape: (H, W, C) of one image.
      weights, biases: of the convolution or dense layer.
      bn_channels: channels of its batch normalisation, each with a scale, a bias, a mean and a
        variance; 0 without batch normalisation.
      macs: multiply-adds for one image.
    """

    name: str
    role: str
    in_shape: Shape
    out_shape: Shape
    weights: int
    biases: int
    bn_channels: int
    macs: int

    @property
    def params(self) -> int:
        """Trainable parameters: weights, biases, BN scale and bias."""
        return self.weights + self.biases + 2 * self.bn_channels

    @property
    def activation_elements(self) -> int:
        """Elements of the output of one image."""
        return int(np.prod(self.out_shape))


@dataclasses.dataclass(frozen=True)
class Totals:
    """Sums over layers, in the conventions that publications use for MobileNetV2's size.

    Attributes:
      params: trainable (weights, biases, BN scale and bias): torchvision, timm.
      params_weights: convolution, dense and SE kernels alone: the released checkpoint table.
      params_folded: BN folded into biases: inference exports.
      params_with_statistics: with BN mean and variance: Keras.
      macs: multiply-adds for one image, classifier included.
      conv_output_elements: elements that convolutions write for one image (timm's activations).
    """

    params: int
    params_weights: int
    params_folded: int
    params_with_statistics: int
    macs: int
    conv_output_elements: int


def _conv(
    name: str,
    role: str,
    in_shape: Shape,
    features: int,
    *,
    kernel: int = 1,
    strides: int = 1,
    depthwise: bool = False,
) -> LayerCost:
    height, width, channels = in_shape
    # Both padding conventions give ceil(size / strides) for odd kernels.
    out = (-(-height // strides), -(-width // strides), features)
    weights = kernel * kernel * (1 if depthwise else channels) * features
    return LayerCost(name, role, in_shape, out, weights, 0, features, weights * out[0] * out[1])


def _block(plan: BlockPlan, in_shape: Shape, kernel: int) -> list[LayerCost]:
    layers = []
    shape = in_shape
    if plan.expands:
        layers.append(_conv(f"{plan.name}/expand", "expand", shape, plan.expanded_features))
        shape = layers[-1].out_shape
    layers.append(
        _conv(
            f"{plan.name}/depthwise",
            "depthwise",
            shape,
            plan.expanded_features,
            kernel=kernel,
            strides=plan.strides,
            depthwise=True,
        )
    )
    shape = layers[-1].out_shape
    if plan.squeeze_features:
        channels, squeeze = plan.expanded_features, plan.squeeze_features
        weights = 2 * channels * squeeze
        layers.append(
            LayerCost(
                f"{plan.name}/se", "se", shape, shape, weights, squeeze + channels, 0, weights
            )
        )
    layers.append(_conv(f"{plan.name}/project", "project", shape, plan.features))
    if plan.shortcut == "projection":
        layers.append(_conv(f"{plan.name}/shortcut", "shortcut", in_shape, plan.features))
    return layers


def layer_costs(
    plan: Plan, image_shape: Shape, num_classes: int, kernel_size: int = 3
) -> list[LayerCost]:
    """The layers of a planned MobileNetV2 in order of computation.

    Args:
      plan: from `mobilenet.models.mobilenet_v2.plan_blocks`.
      image_shape: (H, W, C) of the network's input.
      num_classes: 0 leaves the classifier out.
      kernel_size: of the depthwise convolutions.
    """
    layers = [
        _conv("stem", "stem", image_shape, plan.stem_features, kernel=3, strides=plan.stem_strides)
    ]
    for block in plan.blocks:
        layers += _block(block, _block_input(layers), kernel_size)
    if plan.head_features:
        layers.append(_conv("head", "head", _block_input(layers), plan.head_features))
    if num_classes:
        features = layers[-1].out_shape[2]
        weights = features * num_classes
        shapes = (1, 1, features), (1, 1, num_classes)
        layers.append(
            LayerCost("classifier", "classifier", *shapes, weights, num_classes, 0, weights)
        )
    return layers


def _block_input(layers: list[LayerCost]) -> Shape:
    """Shape of the latest tensor on the main path (a projected shortcut is not on that path)."""
    return next(layer.out_shape for layer in reversed(layers) if layer.role != "shortcut")


def totals(layers: Iterable[LayerCost]) -> Totals:
    """Sums layers in every convention of `Totals`."""
    layers = list(layers)
    weights = sum(layer.weights for layer in layers)
    biases = sum(layer.biases for layer in layers)
    bn = sum(layer.bn_channels for layer in layers)
    return Totals(
        params=weights + biases + 2 * bn,
        params_weights=weights,
        params_folded=weights + biases + bn,
        params_with_statistics=weights + biases + 4 * bn,
        macs=sum(layer.macs for layer in layers),
        conv_output_elements=sum(
            layer.activation_elements for layer in layers if layer.bn_channels
        ),
    )


PeakDefinition = Literal["per_op", "per_op_inplace_depthwise", "block_as_one_op", "block_split"]


@dataclasses.dataclass(frozen=True)
class Peak:
    """Largest activation memory of one image.

    Attributes:
      elements: their number; bytes at int8.
      at: name of the layer or block that needs them.
    """

    elements: int
    at: str


def peak_activation(
    plan: Plan,
    image_shape: Shape,
    num_classes: int,
    definition: PeakDefinition = "per_op",
    *,
    splits: int | None = None,
    kernel_size: int = 3,
) -> Peak:
    """Peak activation memory at batch 1, weights not counted (paper, section 5.1).

    Batch normalisation and activation are fused into the convolution, and squeeze-and-excitation
    into the depthwise convolution that it scales.

    Args:
      plan, image_shape, num_classes, kernel_size: as for `layer_costs`.
      definition: which tensors are in memory at the same time.
        "per_op": input and output of each convolution; in a block with a shortcut the block's input
          stays alive.
        "per_op_inplace_depthwise": as above, but a depthwise convolution needs only the larger of
          its input and output.
        "block_as_one_op": a block's input and output, no expanded tensor (the paper's lower bound).
        "block_split": input, output and one of `splits` equal parts of the expanded tensor, before
          and after the depthwise convolution.
      splits: parts for "block_split"; None is one channel at a time.

    Returns:
      The peak and the first layer or block that reaches it (`stem`, `blocks_1_0/depthwise`, ...).

    Raises:
      ValueError: the plan has shortcuts between expanded tensors, which these definitions do not
        cover, or splits is below 1.
    """
    if any(block.shortcut == "expansion" for block in plan.blocks):
        raise ValueError(
            "Peak memory is defined for shortcuts between bottlenecks; shortcut='expansion' keeps "
            "expanded tensors alive across blocks and has no published definition."
        )
    if splits is not None and splits < 1:
        raise ValueError(f"splits is {splits}; give 1 or more parts, or None for single channels.")
    by_block: dict[str, list[LayerCost]] = {}
    for layer in layer_costs(plan, image_shape, num_classes, kernel_size):
        by_block.setdefault(layer.name.split("/")[0], []).append(layer)
    blocks = {block.name: block for block in plan.blocks}

    candidates: list[Peak] = []
    for name, layers in by_block.items():
        layers = [layer for layer in layers if layer.role != "se"]
        block = blocks.get(name)
        block_in = int(np.prod(layers[0].in_shape))
        block_out = next(la.activation_elements for la in layers[::-1] if la.role != "shortcut")
        if block is not None and definition in ("block_as_one_op", "block_split"):
            elements = block_in + block_out
            if definition == "block_split":
                parts = block.expanded_features if splits is None else splits
                width = -(-block.expanded_features // parts)
                # Without an expansion the block's input is the tensor that is read in parts.
                before = int(np.prod(layers[0].in_shape[:2])) if block.expands else 0
                after = int(np.prod(layers[-1].out_shape[:2]))
                elements += width * (before + after)
            candidates.append(Peak(elements, name))
            continue
        for layer in layers:
            inp, out = int(np.prod(layer.in_shape)), layer.activation_elements
            alive = inp + out
            if definition == "per_op_inplace_depthwise" and layer.role == "depthwise":
                alive = max(inp, out)
            # The shortcut's source outlives the first layer of its block, which reads it anyway.
            if block is not None and block.shortcut != "none" and layer is not layers[0]:
                alive += block_in if layer.role != "shortcut" else block_out
            candidates.append(Peak(alive, layer.name))
    return max(candidates, key=lambda peak: peak.elements)
