"""MobileNetV1 (Howard et al. 2017, arXiv 1704.04861): its block table, a plan, and two modules."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from mobilenet.models.layers import ConvBNAct, ModuleDef, make_divisible
from mobilenet.models.network import Network, Part, resolve_strides


class BlockSpec(NamedTuple):
    """Rows of Table 1 with one width: `repeats` pairs of depthwise and 1x1 convolution.

    The first pair has `strides`; `features` is before the width multiplier.
    """

    features: int
    repeats: int
    strides: int


# Table 1 of the paper. It prints stride 2 for the last depthwise convolution, whose output is 7x7
# like its input. The stride must be 1: the released code has 1, and so do 569 M MACs.
PAPER_BLOCKS = (
    BlockSpec(64, 1, 1),
    BlockSpec(128, 2, 2),
    BlockSpec(256, 2, 2),
    BlockSpec(512, 6, 2),
    BlockSpec(1024, 2, 2),
)


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """One depthwise-separable convolution; `name` is `blocks_{stage}_{block}`, both from 0."""

    name: str
    stage: int
    in_features: int
    features: int
    strides: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """The whole network with every number decided; features are after width and rounding."""

    stem_features: int
    stem_strides: int
    blocks: tuple[BlockPlan, ...]


def plan_blocks(
    *,
    blocks: Sequence[BlockSpec] = PAPER_BLOCKS,
    width_multiplier: float = 1.0,
    stem_features: int = 32,
    stem_strides: int = 2,
    stage_strides: Sequence[int] | None = None,
    divisor: int = 8,
) -> Plan:
    """Decides every channel count and stride of a MobileNetV1.

    Args:
      blocks: rows of the table.
      width_multiplier: the paper's alpha, applied to every layer (section 3.3).
      stem_features, stem_strides: the first convolution, before the width multiplier.
      stage_strides: one per stage, instead of the table's strides; small images need it.
      divisor: channels are multiples of it (`make_divisible`); 1 turns rounding off. At the paper's
        widths (1, 0.75, 0.5, 0.25) rounding changes nothing.

    Raises:
      ValueError: the number of strides is not the number of stages.
    """
    strides = resolve_strides([spec.strides for spec in blocks], stage_strides)
    first = features = make_divisible(stem_features * width_multiplier, divisor)
    plans: list[BlockPlan] = []
    for stage, spec in enumerate(blocks):
        for block in range(spec.repeats):
            before, features = features, make_divisible(spec.features * width_multiplier, divisor)
            step = strides[stage] if block == 0 else 1
            plans.append(BlockPlan(f"blocks_{stage}_{block}", stage, before, features, step))
    return Plan(first, stem_strides, tuple(plans))


class SeparableConv(nn.Module):
    """Depthwise 3x3, then 1x1 convolution, each with BN and activation (section 3.1).

    Attributes:
      plan: widths and stride.
      conv, norm, layer: module constructors bound by the network.
      activation: after both convolutions.

    `__call__` maps x [B, H, W, C] to [B, ceil(H/s), ceil(W/s), features].
    """

    plan: BlockPlan
    conv: ModuleDef
    norm: ModuleDef
    activation: str = "relu6"
    layer: ModuleDef = ConvBNAct

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w F"]:
        plan = self.plan
        layer = functools.partial(
            self.layer, conv=self.conv, norm=self.norm, activation=self.activation
        )
        x = layer(
            features=plan.in_features,
            kernel_size=3,
            strides=plan.strides,
            depthwise=True,
            name="depthwise",
        )(x, train)
        return layer(features=plan.features, name="pointwise")(x, train)


class MobileNetV1(Network):
    """MobileNetV1: stem and depthwise-separable convolutions; it has no head.

    Attributes besides those of `Network`:
      plan: from `plan_blocks`.
      activation: one of `mobilenet.models.normalization.ACTIVATIONS`. The paper says ReLU; the
        released code (research/slim/nets/mobilenet_v1.py) uses ReLU6.
    """

    plan: Plan
    activation: str = "relu6"

    def make_stem(self, layer: ModuleDef) -> Part:
        return layer(
            features=self.plan.stem_features,
            kernel_size=3,
            strides=self.plan.stem_strides,
            activation=self.activation,
            name="stem",
        )

    def make_block(self, plan: BlockPlan, conv: ModuleDef, norm: ModuleDef) -> Part:
        return self.checkpointed(SeparableConv, train=2)(
            plan=plan,
            conv=conv,
            norm=norm,
            activation=self.activation,
            layer=self.layer,
            name=plan.name,
        )
