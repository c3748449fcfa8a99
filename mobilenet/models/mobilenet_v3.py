"""MobileNetV3 (Howard et al. 2019, arXiv 1905.02244): MobileNetV2's blocks, chosen by search.

Each block is an inverted residual with its own kernel size, expanded width, activation and
squeeze-and-excitation. The classifier has a wide layer after the global mean.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Array, Float

from mobilenet.models import mobilenet_v2
from mobilenet.models.initializers import normal
from mobilenet.models.layers import ModuleDef, make_divisible
from mobilenet.models.mobilenet_v2 import InvertedResidual
from mobilenet.models.network import Network, Part, resolve_strides
from mobilenet.models.normalization import activate

STEM_FEATURES = 16
SQUEEZE_DIVISOR = 4  # expanded channels / squeezed channels (section 5.3)
HEAD_RATIO = 6  # channels of the head / channels of the last block (Tables 1 and 2)


class BlockSpec(NamedTuple):
    """One row of the paper's Tables 1 and 2, without its stride; widths are before the width
    multiplier."""

    kernel_size: int
    expanded_features: int
    features: int
    squeezes: bool
    activation: str


class StageSpec(NamedTuple):
    """Rows with the same output width; the first has `strides`."""

    strides: int
    blocks: tuple[BlockSpec, ...]


RE, HS = "relu", "hard_swish"  # the tables' letters
# Table 1 of the paper.
LARGE_STAGES = (
    StageSpec(1, (BlockSpec(3, 16, 16, False, RE),)),
    StageSpec(2, (BlockSpec(3, 64, 24, False, RE), BlockSpec(3, 72, 24, False, RE))),
    StageSpec(2, (BlockSpec(5, 72, 40, True, RE), *2 * (BlockSpec(5, 120, 40, True, RE),))),
    StageSpec(
        2,
        (
            BlockSpec(3, 240, 80, False, HS),
            BlockSpec(3, 200, 80, False, HS),
            *2 * (BlockSpec(3, 184, 80, False, HS),),
        ),
    ),
    StageSpec(1, (BlockSpec(3, 480, 112, True, HS), BlockSpec(3, 672, 112, True, HS))),
    StageSpec(2, (BlockSpec(5, 672, 160, True, HS), *2 * (BlockSpec(5, 960, 160, True, HS),))),
)
LARGE_PENULTIMATE = 1280
# Table 2 of the paper.
SMALL_STAGES = (
    StageSpec(2, (BlockSpec(3, 16, 16, True, RE),)),
    StageSpec(2, (BlockSpec(3, 72, 24, False, RE), BlockSpec(3, 88, 24, False, RE))),
    StageSpec(2, (BlockSpec(5, 96, 40, True, HS), *2 * (BlockSpec(5, 240, 40, True, HS),))),
    StageSpec(1, (BlockSpec(5, 120, 48, True, HS), BlockSpec(5, 144, 48, True, HS))),
    StageSpec(2, (BlockSpec(5, 288, 96, True, HS), *2 * (BlockSpec(5, 576, 96, True, HS),))),
)
SMALL_PENULTIMATE = 1024
# Name -> stages, and features after the global mean.
TABLES = {
    "mobilenet_v3_small": (SMALL_STAGES, SMALL_PENULTIMATE),
    "mobilenet_v3_large": (LARGE_STAGES, LARGE_PENULTIMATE),
}


@dataclasses.dataclass(frozen=True)
class BlockPlan(mobilenet_v2.BlockPlan):
    """A bottleneck of MobileNetV2 with its own kernel size and activation."""

    kernel_size: int = 3
    activation: str = RE


@dataclasses.dataclass(frozen=True)
class Plan:
    """The whole network with every number decided; features are after width and rounding."""

    stem_features: int
    stem_strides: int
    blocks: tuple[BlockPlan, ...]
    head_features: int
    penultimate_features: int


def plan_blocks(
    stages: Sequence[StageSpec],
    penultimate_features: int,
    *,
    width_multiplier: float = 1.0,
    stem_strides: int = 2,
    stage_strides: Sequence[int] | None = None,
    divisor: int = 8,
) -> Plan:
    """Decides every channel count, stride and shortcut of a MobileNetV3.

    Args:
      stages: `LARGE_STAGES` or `SMALL_STAGES`.
      penultimate_features: of the layer after the global mean (`LARGE_PENULTIMATE`,
        `SMALL_PENULTIMATE`). A multiplier above 1 widens it; one below 1 does not narrow it, as in
        the released code (research/slim/nets/mobilenet/mobilenet_v3.py).
      width_multiplier: applied to every other layer. Expanded widths keep the tables' ratio to the
        block's input.
      stem_strides: of the first convolution.
      stage_strides: one per stage, instead of the tables' strides; small images need it.
      divisor: channels are multiples of it, squeezed ones too (`make_divisible`); 1 turns rounding
        off.

    Raises:
      ValueError: the number of strides is not the number of stages.
    """

    def scale(features: int) -> int:
        return make_divisible(features * width_multiplier, divisor)

    strides = resolve_strides([stage.strides for stage in stages], stage_strides)
    first = features = scale(STEM_FEATURES)
    table_features = STEM_FEATURES  # `features` before the width multiplier
    plans: list[BlockPlan] = []
    for stage, (_, specs) in enumerate(stages):
        for block, spec in enumerate(specs):
            before, features = features, scale(spec.features)
            step = strides[stage] if block == 0 else 1
            expanded = make_divisible(before * spec.expanded_features / table_features, divisor)
            squeezed = make_divisible(expanded / SQUEEZE_DIVISOR, divisor)
            table_features = spec.features
            plans.append(
                BlockPlan(
                    name=f"blocks_{stage}_{block}",
                    stage=stage,
                    in_features=before,
                    expanded_features=expanded,
                    features=features,
                    strides=step,
                    expands=expanded != before,
                    shortcut="identity" if step == 1 and before == features else "none",
                    squeeze_features=squeezed if spec.squeezes else 0,
                    kernel_size=spec.kernel_size,
                    activation=spec.activation,
                )
            )
    penultimate = make_divisible(penultimate_features * max(1.0, width_multiplier), divisor)
    return Plan(first, stem_strides, tuple(plans), features * HEAD_RATIO, penultimate)


class MobileNetV3(Network):
    """MobileNetV3: stem, inverted residuals, head, global mean, `penultimate`, classifier.

    Squeeze-and-excitation reads the activated depthwise map; its gate is a hard sigmoid. The layer
    `penultimate` is dense, with a bias and without normalisation, like the paper's 1x1 convolution
    "NBN" on the pooled map. The endpoint `features` is its output; with `num_classes` 0 this output
    is also the result.

    Attributes besides those of `mobilenet.models.network.Network`:
      plan: from `plan_blocks`.
    """

    plan: Plan

    @property
    def tail(self) -> tuple[str, ...]:
        """Names of the submodules between the last block and the classifier."""
        return ("head", "penultimate")

    def make_stem(self, layer: ModuleDef) -> Part:
        return layer(
            features=self.plan.stem_features,
            kernel_size=3,
            strides=self.plan.stem_strides,
            activation=HS,
            name="stem",
        )

    def make_block(self, plan: BlockPlan, conv: ModuleDef, norm: ModuleDef) -> Part:
        block = self.checkpointed(InvertedResidual, train=3)(
            plan=plan,
            conv=conv,
            norm=norm,
            activation=plan.activation,
            kernel_size=plan.kernel_size,
            se_gate="hard_sigmoid",
            dtype=self.dtype,
            layer=self.layer,
            dense=self.dense,
            point=self.point,
            name=plan.name,
        )
        return lambda x, train: block(x, None, train)[0]

    def make_head(self, layer: ModuleDef) -> Part:
        return layer(features=self.plan.head_features, activation=HS, name="head")

    def after_mean(self, x: Float[Array, "B C"], train: bool) -> Float[Array, "B F"]:
        dense = self.dense(
            self.plan.penultimate_features,
            kernel_init=normal(0.01),  # torchvision's
            name="penultimate",
        )
        return self.point(name="activated")(activate(dense(x), HS), train)
