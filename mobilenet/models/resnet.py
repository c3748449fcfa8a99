"""ResNet (He et al. 2015, arXiv 1512.03385) as block tables, a plan, and two modules.

ResNet-50 is the form in common use: the 3x3 convolution of a bottleneck has the stride
(torchvision's, also called v1.5). In the paper the first 1x1 convolution has it.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from mobilenet.models.depthwise import resolve_padding
from mobilenet.models.layers import ConvBNAct, Exact, ModuleDef, Padding, make_divisible
from mobilenet.models.network import Network, Part, resolve_strides
from mobilenet.models.normalization import activate

BOTTLENECK_RATIO = 4  # output channels of a bottleneck / channels of its 3x3 convolution (Table 1)


class BlockSpec(NamedTuple):
    """One stage of the paper's Table 1 (conv2_x to conv5_x): `repeats` blocks, the first of them
    with `strides`; `features` is the width of the 3x3 convolutions before the width multiplier."""

    features: int
    repeats: int
    strides: int


# Table 1 of the paper.
RESNET18_BLOCKS = (
    BlockSpec(64, 2, 1),
    BlockSpec(128, 2, 2),
    BlockSpec(256, 2, 2),
    BlockSpec(512, 2, 2),
)
RESNET50_BLOCKS = (
    BlockSpec(64, 3, 1),
    BlockSpec(128, 4, 2),
    BlockSpec(256, 6, 2),
    BlockSpec(512, 3, 2),
)
# Name -> block table, and whether its blocks are bottlenecks.
TABLES = {"resnet18": (RESNET18_BLOCKS, False), "resnet50": (RESNET50_BLOCKS, True)}


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """One residual block with every number decided.

    Attributes:
      name: `blocks_{stage}_{block}`, both from 0.
      inner_features: of the 3x3 convolutions.
      bottleneck: 1x1, 3x3, 1x1 instead of 3x3, 3x3.
      projects: the shortcut is a 1x1 convolution, because widths or sizes differ (option B).
      pools: the block begins with the 3x3 max-pooling of stride 2 that opens conv2_x.
    """

    name: str
    stage: int
    in_features: int
    inner_features: int
    features: int
    strides: int
    bottleneck: bool
    projects: bool
    pools: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """The whole network with every number decided; features are after width and rounding."""

    stem_features: int
    stem_kernel_size: int
    stem_strides: int
    blocks: tuple[BlockPlan, ...]


def plan_blocks(
    blocks: Sequence[BlockSpec] = RESNET18_BLOCKS,
    bottleneck: bool = False,
    *,
    width_multiplier: float = 1.0,
    stem_features: int = 64,
    stem_strides: int = 2,
    stage_strides: Sequence[int] | None = None,
    divisor: int = 8,
) -> Plan:
    """Decides every channel count, stride and shortcut of a ResNet.

    Args:
      blocks: one entry per stage.
      bottleneck: blocks of 1x1, 3x3, 1x1 convolutions, as ResNet-50 has them.
      width_multiplier: applied to every layer.
      stem_features: before the width multiplier.
      stem_strides: 2 is the paper's stem for ImageNet, a 7x7 convolution followed by max-pooling; 1
        is the form for small images, only a 3x3 convolution (kuangliu/pytorch-cifar).
      stage_strides: one per stage, instead of the table's strides.
      divisor: channels are multiples of it (`make_divisible`); 1 turns rounding off.

    Raises:
      ValueError: the number of strides is not the number of stages.
    """
    strides = resolve_strides([spec.strides for spec in blocks], stage_strides)
    first = features = make_divisible(stem_features * width_multiplier, divisor)
    pooled = stem_strides == 2
    plans: list[BlockPlan] = []
    for stage, spec in enumerate(blocks):
        inner = make_divisible(spec.features * width_multiplier, divisor)
        for block in range(spec.repeats):
            before, features = features, inner * (BOTTLENECK_RATIO if bottleneck else 1)
            step = strides[stage] if block == 0 else 1
            plans.append(
                BlockPlan(
                    name=f"blocks_{stage}_{block}",
                    stage=stage,
                    in_features=before,
                    inner_features=inner,
                    features=features,
                    strides=step,
                    bottleneck=bottleneck,
                    projects=step != 1 or before != features,
                    pools=pooled and not plans,
                )
            )
    return Plan(first, 7 if pooled else 3, stem_strides, tuple(plans))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1, and a shortcut around them (section 3.3, Fig. 5).

    Attributes:
      plan: widths, stride and shortcut.
      conv, norm, layer, point: module constructors bound by the network.
      padding: of the max-pooling.

    `__call__` maps x [B, H, W, C] to [B, ceil(H/s), ceil(W/s), features]. If `plan.pools`, H and W
    are first halved (rounded up). ReLU follows the addition.
    """

    plan: BlockPlan
    conv: ModuleDef
    norm: ModuleDef
    padding: Padding = "SAME"
    layer: ModuleDef = ConvBNAct
    point: ModuleDef = Exact

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w F"]:
        plan = self.plan
        layer = functools.partial(self.layer, conv=self.conv, norm=self.norm)
        relu = functools.partial(layer, features=plan.inner_features, activation="relu")
        # The last layer of a branch: its ReLU comes after the addition.
        last = functools.partial(layer, features=plan.features, activation="identity")
        if plan.pools:
            pads: Any = resolve_padding(self.padding, x.shape[1:3], (3, 3), 2, 1)
            x = nn.max_pool(x, (3, 3), (2, 2), pads)
        if plan.bottleneck:
            y = relu(name="conv1")(x, train)
            y = relu(kernel_size=3, strides=plan.strides, name="conv2")(y, train)
            y = last(name="conv3")(y, train)
        else:
            y = relu(kernel_size=3, strides=plan.strides, name="conv1")(x, train)
            y = last(kernel_size=3, name="conv2")(y, train)
        if plan.projects:
            x = last(strides=plan.strides, name="shortcut")(x, train)
        return self.point(name="sum")(activate(x + y, "relu"), train)


class ResNet(Network):
    """ResNet: stem and residual blocks, ReLU throughout; it has no head.

    Attributes besides those of `mobilenet.models.network.Network`:
      plan: from `plan_blocks`.

    The endpoint `stem` is before max-pooling, at stride 2; `stage_0` to `stage_3` (conv2_x to
    conv5_x) are at strides 4, 8, 16 and 32.
    """

    plan: Plan

    def make_stem(self, layer: ModuleDef) -> Part:
        return layer(
            features=self.plan.stem_features,
            kernel_size=self.plan.stem_kernel_size,
            strides=self.plan.stem_strides,
            activation="relu",
            name="stem",
        )

    def make_block(self, plan: BlockPlan, conv: ModuleDef, norm: ModuleDef) -> Part:
        return self.checkpointed(ResidualBlock, train=2)(
            plan=plan,
            conv=conv,
            norm=norm,
            padding=self.padding,
            layer=self.layer,
            point=self.point,
            name=plan.name,
        )
