"""MobileNetV1 (Howard et al. 2017, arXiv 1704.04861), and what it shares with other baselines.

`Network` is the frame that MobileNetV1, MobileNetV3 and ResNet fill with their stem, blocks and
head. Seen from outside it is a MobileNetV2: the same settings, names of submodules and endpoints.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mobilenet.models.initializers import INITIALIZERS, normal
from mobilenet.models.layers import (
    Conv,
    ConvBNAct,
    Dropout,
    ModuleDef,
    Padding,
    make_divisible,
)
from mobilenet.models.normalization import BatchNorm

Layer = Callable[..., ConvBNAct]
Block = Callable[[Array, bool], Array]


class Network(nn.Module):
    """A classifier of a stem, planned blocks, a head, the global mean, dropout and a dense layer.

    A network overrides `make_stem` and `make_block`, and where it has more behind its blocks,
    `make_head`, `after_mean` and `tail`.

    Attributes:
      plan: every channel count and stride; its `blocks` have a `name` and a `stage` each.
      num_classes: 0 returns the features that the classifier reads instead of logits.
      dropout_rate: before the classifier, in [0, 1).
      padding: "SAME" as TensorFlow, "SYMMETRIC" as PyTorch; they differ at stride 2.
      bn_momentum: weight of the old running average (PyTorch's momentum is one minus it).
      bn_axis_name, bn_axis_index_groups: mapped axis over which batch statistics are averaged, and
        its groups; None keeps them local.
      initializer: of the convolutions, a key of `mobilenet.models.initializers.INITIALIZERS`.
      dtype: of activations and products; parameters and BN statistics stay float32.
      conv_form: "auto", "grouped" or "shifted" (`mobilenet.models.depthwise.resolve_form`).
      remat: recompute each block in the backward pass instead of keeping its activations.
      frozen: names of `modules` that run as in evaluation also in training: their BN uses its
        running statistics, and leaves them as they are.
      conv, norm: constructors to put in place of `Conv` and `BatchNorm` (quantised ones, say).

    `__call__` maps images [B, H, W, C], already normalised, to logits [B, num_classes] float32, or
    features [B, F] float32. With `endpoints=True` it returns (result, endpoints) where endpoints
    holds `stem`, `stage_0` ... and, if there is one, `head` as [B, h, w, c], and `features`.
    `dropout_keys` holds one PRNG key an example. In training mode `batch_stats` must be mutable.
    """

    plan: Any
    num_classes: int = 1000
    dropout_rate: float = 0.0
    padding: Padding = "SAME"
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3
    bn_axis_name: str | None = None
    bn_axis_index_groups: tuple[tuple[int, ...], ...] | None = None
    initializer: str = "he_fan_out"
    dtype: Any = jnp.float32
    conv_form: str = "auto"
    remat: bool = False
    frozen: tuple[str, ...] = ()
    conv: ModuleDef = Conv
    norm: ModuleDef = BatchNorm

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the submodules in order of computation, as in `params`."""
        blocks = (plan.name for plan in self.plan.blocks)
        return ("stem", *blocks, *self.tail, *(("classifier",) if self.num_classes else ()))

    @property
    def tail(self) -> tuple[str, ...]:
        """Names of the submodules between the last block and the classifier."""
        return ()

    def constructors(self) -> tuple[ModuleDef, ModuleDef]:
        """`conv` and `norm` with the network's settings bound, as every layer receives them."""
        conv = functools.partial(
            self.conv,
            padding=self.padding,
            form=self.conv_form,
            dtype=self.dtype,
            kernel_init=INITIALIZERS[self.initializer],
        )
        norm = functools.partial(
            self.norm,
            momentum=self.bn_momentum,
            epsilon=self.bn_epsilon,
            axis_name=self.bn_axis_name,
            axis_index_groups=self.bn_axis_index_groups,
            dtype=self.dtype,
        )
        return conv, norm

    def make_stem(self, layer: Layer) -> ConvBNAct:
        """The first layer, named `stem`; `layer` is ConvBNAct with its constructors bound."""
        raise NotImplementedError(f"{type(self).__name__} must say what its stem is.")

    def make_block(self, plan: Any, conv: ModuleDef, norm: ModuleDef) -> Block:
        """The block of one entry of the plan, named as it says, as a function of (x, train)."""
        raise NotImplementedError(f"{type(self).__name__} must say what its blocks are.")

    def make_head(self, layer: Layer) -> ConvBNAct | None:
        """The layer between the last block and the global mean, named `head`; None without."""
        del layer
        return None

    def after_mean(self, x: Float[Array, "B C"]) -> Float[Array, "B F"]:
        """From the global mean to what the classifier reads."""
        return x

    def checkpointed(self, block: type[nn.Module], train: int) -> Callable[..., Any]:
        """A block's class, recomputed in the backward pass if `remat`.

        Args:
          block: the class.
          train: position of `train` among the arguments of its `__call__`, `self` being 0.
        """
        return nn.remat(block, static_argnums=(train,)) if self.remat else block

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W C"],
        train: bool = False,
        *,
        endpoints: bool = False,
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Any:
        conv, norm = self.constructors()
        layer = functools.partial(ConvBNAct, conv=conv, norm=norm)

        def learns(name: str) -> bool:
            return train and name not in self.frozen

        found: dict[str, Any] = {}
        x = self.make_stem(layer)(images.astype(self.dtype), learns("stem"))
        found["stem"] = x
        for plan in self.plan.blocks:
            x = self.make_block(plan, conv, norm)(x, learns(plan.name))
            found[f"stage_{plan.stage}"] = x
        head = self.make_head(layer)
        if head is not None:
            x = head(x, learns("head"))
            found["head"] = x
        # The mean and what follows it run in float32: they are small and end in the loss.
        x = self.after_mean(jnp.mean(x, axis=(1, 2), dtype=jnp.float32))
        found["features"] = x
        if self.num_classes:
            x = Dropout(self.dropout_rate, name="dropout")(x, train, dropout_keys)
            x = nn.Dense(
                self.num_classes,
                kernel_init=normal(0.01),  # as MobileNetV2's
                name="classifier",
            )(x)
        return (x, found) if endpoints else x


def resolve_strides(table: Sequence[int], stage_strides: Sequence[int] | None) -> Sequence[int]:
    """The strides of the stages: those of the block table unless others are given.

    Raises:
      ValueError: another number of strides than there are stages.
    """
    if stage_strides is None:
        return table
    if len(stage_strides) != len(table):
        raise ValueError(
            f"stage_strides has {len(stage_strides)} values for {len(table)} stages; give one for "
            "each stage."
        )
    return stage_strides


class BlockSpec(NamedTuple):
    """Rows of Table 1 with one width: `repeats` pairs of depthwise and 1x1 convolution, the first
    with `strides`; `features` is before the width multiplier."""

    features: int
    repeats: int
    strides: int


# Table 1 of the paper. Its last depthwise convolution is printed with stride 2 on a map of 7x7 that
# it leaves at 7x7: the stride is 1, as in the released code, and as 569 M MACs need.
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
      stage_strides: replaces the table's strides, one a stage; small pictures need it.
      divisor: channels are multiples of it (`make_divisible`); 1 turns rounding off. At the paper's
        widths (1, 0.75, 0.5, 0.25) rounding changes nothing.

    Raises:
      ValueError: another number of strides than there are stages.
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
      conv, norm: module constructors bound by the network.
      activation: after both convolutions.

    `__call__` maps x [B, H, W, C] to [B, ceil(H/s), ceil(W/s), features].
    """

    plan: BlockPlan
    conv: ModuleDef
    norm: ModuleDef
    activation: str = "relu6"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w F"]:
        plan = self.plan
        layer = functools.partial(
            ConvBNAct, conv=self.conv, norm=self.norm, activation=self.activation
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
      activation: of `mobilenet.models.normalization.ACTIVATIONS`. The paper says ReLU; the released
        code (research/slim/nets/mobilenet_v1.py) has ReLU6.
    """

    plan: Plan
    activation: str = "relu6"

    def make_stem(self, layer: Layer) -> ConvBNAct:
        return layer(
            features=self.plan.stem_features,
            kernel_size=3,
            strides=self.plan.stem_strides,
            activation=self.activation,
            name="stem",
        )

    def make_block(self, plan: BlockPlan, conv: ModuleDef, norm: ModuleDef) -> Block:
        return self.checkpointed(SeparableConv, train=2)(
            plan=plan, conv=conv, norm=norm, activation=self.activation, name=plan.name
        )
