"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) as its block table, a plan, and two modules.

`plan_blocks` computes channel counts and strides from the table and the multipliers. The network
below and the costs in `mobilenet.models.cost` are both derived from that plan.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mobilenet.models.layers import ConvBNAct, Exact, ModuleDef, SqueezeExcite, make_divisible
from mobilenet.models.network import Network, Part, resolve_strides

SHORTCUTS = ("bottleneck", "expansion", "none")
SE_BASES = ("input", "expanded")
OUTPUT_STRIDES = (8, 16, 32)


class BlockSpec(NamedTuple):
    """One row of the paper's Table 2: `repeats` bottlenecks, the first of them with `strides`.

    `expansion_ratio` is the paper's t, a factor of the block's input channels; `features` is the
    paper's c, before the width multiplier.
    """

    expansion_ratio: float
    features: int
    repeats: int
    strides: int


# Table 2 of the paper.
PAPER_BLOCKS = (
    BlockSpec(1, 16, 1, 1),
    BlockSpec(6, 24, 2, 2),
    BlockSpec(6, 32, 3, 2),
    BlockSpec(6, 64, 4, 2),
    BlockSpec(6, 96, 3, 1),
    BlockSpec(6, 160, 3, 2),
    BlockSpec(6, 320, 1, 1),
)


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """One bottleneck with every number decided.

    Attributes:
      name: `blocks_{stage}_{block}`, both from 0: the submodule's name and checkpoint key.
      expands: whether the 1x1 expansion convolution exists.
      shortcut: "identity" or "projection" adds the block's input to its output; "expansion" adds
        the previous block's expanded tensor to this block's; "none".
      squeeze_features: width of the squeeze-and-excitation bottleneck, 0 without one.
      dilation: step between the taps of the depthwise convolution; above 1 where an output stride
        replaced strides of blocks before this one.
    """

    name: str
    stage: int
    in_features: int
    expanded_features: int
    features: int
    strides: int
    expands: bool
    shortcut: str
    squeeze_features: int
    dilation: int = 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """The whole network with every number decided; features are after width and rounding."""

    stem_features: int
    stem_strides: int
    blocks: tuple[BlockPlan, ...]
    head_features: int


def last_at_strides(plan: Plan, *, expanded: bool = False) -> dict[int, str]:
    """The endpoint of the last tensor at every stride; dense heads read these tensors.

    Args:
      plan: of the network.
      expanded: also count the expanded tensor of a block that reduces the resolution, which is
        computed at the stride of the block's input, as SSDLite does (section 6.2). Otherwise only
        the outputs of stages count.

    Returns:
      Stride (image pixels for one pixel, along one side) -> name in the network's endpoints, from
      the smallest stride on. Table 2 at 224 pixels gives {2: "stage_0", 4: "stage_1", 8: "stage_2",
      16: "stage_4", 32: "head"}, and with `expanded` {2: "blocks_1_0/expand", 4:
      "blocks_2_0/expand", 8: "blocks_3_0/expand", 16: "blocks_5_0/expand", 32: "head"}.
    """
    stride = plan.stem_strides
    last = {stride: "stem"}
    for block in plan.blocks:
        if expanded and block.strides > 1 and block.expands:
            last[stride] = f"{block.name}/expand"
        stride *= block.strides
        last[stride] = f"stage_{block.stage}"
    if plan.head_features:
        last[stride] = "head"
    return last


def _stage_ratios(
    blocks: Sequence[BlockSpec], expansion_ratio: float | Sequence[float] | None
) -> Sequence[float]:
    if expansion_ratio is None:
        return [spec.expansion_ratio for spec in blocks]
    if isinstance(expansion_ratio, int | float):
        # In the paper the first row has t = 1, whatever the ratio of the others (section 4).
        return [blocks[0].expansion_ratio] + [expansion_ratio] * (len(blocks) - 1)
    if len(expansion_ratio) != len(blocks):
        raise ValueError(
            f"expansion_ratio has {len(expansion_ratio)} values for {len(blocks)} stages; give one "
            "number, or one for each stage."
        )
    return list(expansion_ratio)


def plan_blocks(
    *,
    blocks: Sequence[BlockSpec] = PAPER_BLOCKS,
    width_multiplier: float = 1.0,
    expansion_ratio: float | Sequence[float] | None = None,
    stem_features: int = 32,
    stem_strides: int = 2,
    stage_strides: Sequence[int] | None = None,
    head_features: int = 1280,
    shrink_head: bool = False,
    divisor: int = 8,
    expand_always: bool = False,
    shortcut: str = "bottleneck",
    shortcut_projection: bool = False,
    se_ratio: float | None = None,
    se_base: str = "expanded",
    se_divisor: int = 1,
    output_stride: int | None = None,
    expanded_features: Sequence[int] | None = None,
) -> Plan:
    """Decides every channel count, stride and shortcut of a MobileNetV2.

    Args:
      blocks: rows of the table.
      width_multiplier: the paper's alpha, applied to every `features` and to the stem.
      expansion_ratio: None keeps the table's; one number replaces it in every stage but the first;
        a sequence gives one ratio per stage.
      stem_features, stem_strides: the first convolution, before the width multiplier.
      stage_strides: one per stage, instead of the table's strides; small images need it.
      head_features: of the last 1x1 convolution. A multiplier above 1 widens it; a multiplier below
        1 narrows it only if `shrink_head` (section 4). 0 leaves the head out.
      divisor: channels are multiples of it (`make_divisible`); 1 turns rounding off. Expanded
        channels are the input channels times the ratio, not rounded again.
      expand_always: build the 1x1 expansion at a ratio of 1 too (the kuangliu CIFAR form).
      shortcut: "bottleneck" as in the paper, "expansion" between expanded tensors (Fig. 6b), or
        "none". A block has one when its stride is 1 and its input and output widths agree.
      shortcut_projection: at stride 1 with differing widths, a 1x1 convolution with batch
        normalisation on the shortcut (the kuangliu CIFAR form, not the paper).
      se_ratio: squeeze width = ratio x base, in (0, 1]; None is no squeeze-and-excitation.
      se_base: "input" channels of the block or "expanded" channels: published models differ.
      se_divisor: rounding of the squeeze width by `make_divisible`; 1 truncates, at least 1.
      output_stride: 8, 16 or 32, at most the product of all strides: strides beyond it become
        dilation (Chen et al. 2017, arXiv 1706.05587, section 3.1; section 6.3 here). The block
        whose stride is replaced keeps the dilation of the blocks before it; the dilation of the
        blocks after it is multiplied by that stride. Widths and shortcuts are those of the strided
        network, so its weights fit. None leaves the strides as they are.
      expanded_features: expanded channels of every block in order, instead of input channels times
        ratio; a network after channel shrinking has them. Which blocks expand, and their squeeze
        width, still follows from the ratio: a block that does not expand keeps its input's width.
        None or empty follows the ratio.

    Raises:
      ValueError: a table, a list or a name does not fit.
    """
    stage_strides = resolve_strides([spec.strides for spec in blocks], stage_strides)
    if shortcut not in SHORTCUTS:
        raise ValueError(f"shortcut is {shortcut!r}; allowed are {', '.join(SHORTCUTS)}.")
    if se_base not in SE_BASES:
        raise ValueError(f"se_base is {se_base!r}; allowed are {', '.join(SE_BASES)}.")
    total = math.prod((stem_strides, *stage_strides))
    allowed = [stride for stride in OUTPUT_STRIDES if stride <= total]
    if output_stride is not None and output_stride not in allowed:
        raise ValueError(
            f"output_stride is {output_stride!r}; the strides multiply to {total}, so allowed are "
            f"{', '.join(map(str, ['None', *allowed]))}."
        )

    count = sum(spec.repeats for spec in blocks)
    if expanded_features and len(expanded_features) != count:
        raise ValueError(
            f"expanded_features has {len(expanded_features)} values for {count} blocks; give one "
            "for each block."
        )

    def scale(features: int) -> int:
        return make_divisible(features * width_multiplier, divisor)

    plans: list[BlockPlan] = []
    features = scale(stem_features)
    first = features
    stride, dilation, before_strides = stem_strides, 1, 1
    for stage, (spec, ratio) in enumerate(
        zip(blocks, _stage_ratios(blocks, expansion_ratio), strict=True)
    ):
        for block in range(spec.repeats):
            in_features, features = features, scale(spec.features)
            strides = stage_strides[stage] if block == 0 else 1
            expanded = max(1, round(in_features * ratio))
            squeeze = 0
            if se_ratio is not None:
                base = in_features if se_base == "input" else expanded
                squeeze = (
                    max(1, int(base * se_ratio + 1e-9))
                    if se_divisor == 1
                    else make_divisible(base * se_ratio, se_divisor)
                )
            expands = expand_always or expanded != in_features
            if expanded_features:
                chosen = expanded_features[len(plans)]
                if not expands and chosen != in_features:
                    raise ValueError(
                        f"expanded_features is {chosen} in blocks_{stage}_{block}, which does not "
                        f"expand; it must be {in_features} there, as its input."
                    )
                expanded = chosen
            kind = "none"
            if shortcut == "bottleneck" and strides == 1:
                if in_features == features:
                    kind = "identity"
                elif shortcut_projection:
                    kind = "projection"
            elif shortcut == "expansion" and plans:
                # The expanded maps of blocks i and i+1 have one shape if block i keeps its shape.
                before = plans[-1]
                if (
                    before_strides == 1
                    and before.in_features == in_features
                    and before.expanded_features == expanded
                ):
                    kind = "expansion"
            atrous = output_stride is not None and stride * strides > output_stride
            plans.append(
                BlockPlan(
                    name=f"blocks_{stage}_{block}",
                    stage=stage,
                    in_features=in_features,
                    expanded_features=expanded,
                    features=features,
                    strides=1 if atrous else strides,
                    expands=expands,
                    shortcut=kind,
                    squeeze_features=squeeze,
                    dilation=dilation,
                )
            )
            if atrous:
                dilation *= strides
            else:
                stride *= strides
            before_strides = strides
    head_width = width_multiplier if shrink_head else max(1.0, width_multiplier)
    head = make_divisible(head_features * head_width, divisor) if head_features else 0
    return Plan(first, stem_strides, tuple(plans), head)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project, with a linear bottleneck (arXiv 1801.04381, section 3.3).

    Attributes:
      plan: widths, stride and shortcut of the block.
      conv, norm, layer, dense, point: module constructors bound by the network.
      activation: after the expansion and the depthwise convolution.
      bottleneck_activation: after the projection; the paper uses "identity" and compares "relu6"
        in Fig. 6a.
      se_gate: of the squeeze-and-excitation, a key of `mobilenet.models.layers.GATES`.

    `__call__` maps x [B, H, W, C] and the previous block's expanded tensor to the output [B,
    ceil(H/s), ceil(W/s), features] and this block's expanded tensor [B, H, W, expanded_features].
    """

    plan: BlockPlan
    conv: ModuleDef
    norm: ModuleDef
    activation: str = "relu6"
    bottleneck_activation: str = "identity"
    kernel_size: int = 3
    se_gate: str = "sigmoid"
    dtype: Any = jnp.float32
    layer: ModuleDef = ConvBNAct
    dense: ModuleDef = nn.Dense
    point: ModuleDef = Exact

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        before: Float[Array, "B H W E"] | None,
        train: bool,
    ) -> tuple[Float[Array, "B h w F"], Float[Array, "B H W E"]]:
        plan = self.plan
        layer = functools.partial(self.layer, conv=self.conv, norm=self.norm)
        expanded = x
        if plan.expands:
            expanded = layer(
                features=plan.expanded_features, activation=self.activation, name="expand"
            )(x, train)
        if plan.shortcut == "expansion":
            assert before is not None
            expanded = self.point(name="expanded_sum")(expanded + before, train)
        y = layer(
            features=plan.expanded_features,
            kernel_size=self.kernel_size,
            strides=plan.strides,
            dilation=plan.dilation,
            depthwise=True,
            activation=self.activation,
            name="depthwise",
        )(expanded, train)
        if plan.squeeze_features:
            y = SqueezeExcite(
                plan.squeeze_features,
                self.se_gate,
                self.dtype,
                dense=self.dense,
                point=self.point,
                name="se",
            )(y, train)
        y = layer(features=plan.features, activation=self.bottleneck_activation, name="project")(
            y, train
        )
        if plan.shortcut == "projection":
            x = layer(features=plan.features, activation="identity", name="shortcut")(x, train)
        if plan.shortcut in ("identity", "projection"):
            y = self.point(name="sum")(y + x, train)
        return y, expanded


class MobileNetV2(Network):
    """MobileNetV2: stem, planned bottlenecks, and a head where the plan has one.

    Attributes besides those of `mobilenet.models.network.Network`:
      plan: from `plan_blocks`.
      activation: one of `mobilenet.models.normalization.ACTIVATIONS`.
      bottleneck_activation, se_gate: as in `InvertedResidual`.
      kernel_size: of the depthwise convolutions, odd. The stem's is 3.

    The endpoints also hold the expanded tensor of each block that reduces the resolution, as
    `blocks_{stage}_{block}/expand`; `last_at_strides` names those that dense heads read.
    """

    plan: Plan
    activation: str = "relu6"
    bottleneck_activation: str = "identity"
    kernel_size: int = 3
    se_gate: str = "sigmoid"

    @property
    def tail(self) -> tuple[str, ...]:
        """Names of the submodules between the last block and the classifier."""
        return ("head",) if self.plan.head_features else ()

    def make_stem(self, layer: ModuleDef) -> Part:
        return layer(
            features=self.plan.stem_features,
            kernel_size=3,
            strides=self.plan.stem_strides,
            activation=self.activation,
            name="stem",
        )

    def run_blocks(
        self,
        plans: Sequence[BlockPlan],
        x: Array,
        train: bool,
        conv: ModuleDef,
        norm: ModuleDef,
        endpoints: dict[str, Any],
    ) -> Array:
        block = self.checkpointed(InvertedResidual, train=3)
        expanded = None
        for plan in plans:
            x, expanded = block(
                plan=plan,
                conv=conv,
                norm=norm,
                activation=self.activation,
                bottleneck_activation=self.bottleneck_activation,
                kernel_size=self.kernel_size,
                se_gate=self.se_gate,
                dtype=self.dtype,
                layer=self.layer,
                dense=self.dense,
                point=self.point,
                name=plan.name,
            )(x, expanded, self.learns(plan.name, train))
            if plan.expands and plan.strides > 1:
                endpoints[f"{plan.name}/expand"] = expanded
            endpoints[f"stage_{plan.stage}"] = x
        return x

    def make_head(self, layer: ModuleDef) -> Part | None:
        if not self.plan.head_features:
            return None
        return layer(features=self.plan.head_features, activation=self.activation, name="head")
