"""`Network`: the frame that all classifiers share; each adds its stem, blocks and head."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mobilenet.models.initializers import INITIALIZERS, normal
from mobilenet.models.layers import Conv, ConvBNAct, Dropout, Exact, ModuleDef, Padding
from mobilenet.models.normalization import BatchNorm

Part = Callable[[Array, bool], Array]  # a submodule as a function of (x, train)


class Network(nn.Module):
    """A classifier of a stem, planned blocks, a head, the global mean, dropout and a dense layer.

    A network overrides `make_stem` and `make_block` (or `run_blocks`). If it has more layers after
    its blocks, it also overrides `make_head`, `after_mean` and `tail`.

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
      frozen: names of `modules` that run in evaluation mode also in training: their BN uses its
        running statistics and does not update them.
      conv, norm, layer, dense: constructors used instead of `Conv`, `BatchNorm`, `ConvBNAct` and
        `nn.Dense` (quantised ones, for example). `point` constructs modules for tensors that are
        not a layer's output: the input, sums, pooled and gated maps, logits. Each of these tensors
        passes through its own module.

    `__call__` maps images [B, H, W, C], already normalised, to logits [B, num_classes] float32, or
    features [B, F] float32. With `endpoints=True` it returns (result, endpoints) where endpoints
    holds `stem`, `stage_0` ... and, if there is one, `head` as [B, h, w, c], and `features`.
    `dropout_keys` holds one PRNG key per example. In training mode `batch_stats` must be mutable.
    With `part`, one of `parts`, it computes only that part: from the input of its first module to
    the output of its last.
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
    layer: ModuleDef = ConvBNAct
    dense: ModuleDef = nn.Dense
    point: ModuleDef = Exact

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the submodules in order of computation, as in `params`."""
        blocks = (plan.name for plan in self.plan.blocks)
        return ("stem", *blocks, *self.tail, *(("classifier",) if self.num_classes else ()))

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        """`modules`, divided after each block that reduces the resolution.

        Only one tensor passes from one part to the next: a shortcut between the expansions of two
        blocks needs both at one resolution.
        """
        names = self.modules
        ends = [names.index(plan.name) + 1 for plan in self.plan.blocks if plan.strides > 1]
        cuts = sorted({0, *ends, len(names)})
        return tuple(names[start:end] for start, end in itertools.pairwise(cuts))

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

    def learns(self, name: str, train: bool) -> bool:
        """`train` for one of `modules`: False if it is frozen."""
        return train and name not in self.frozen

    def make_stem(self, layer: ModuleDef) -> Part:
        """The first layer, named `stem`; `layer` has its constructors bound."""
        raise NotImplementedError(f"{type(self).__name__} must say what its stem is.")

    def make_block(self, plan: Any, conv: ModuleDef, norm: ModuleDef) -> Part:
        """The block of one entry of the plan, with the entry's name."""
        raise NotImplementedError(f"{type(self).__name__} must say what its blocks are.")

    def run_blocks(
        self,
        plans: Sequence[Any],
        x: Array,
        train: bool,
        conv: ModuleDef,
        norm: ModuleDef,
        endpoints: dict[str, Any],
    ) -> Array:
        """Applies consecutive blocks (one part or all) and adds their outputs to `endpoints`."""
        for plan in plans:
            x = self.make_block(plan, conv, norm)(x, self.learns(plan.name, train))
            endpoints[f"stage_{plan.stage}"] = x
        return x

    def make_head(self, layer: ModuleDef) -> Part | None:
        """The layer between the last block and the global mean, named `head`, or None."""
        del layer
        return None

    def after_mean(self, x: Float[Array, "B C"], train: bool) -> Float[Array, "B F"]:
        """The layers from the global mean to the input of the classifier."""
        del train
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
        part: tuple[str, ...] | None = None,
    ) -> Any:
        conv, norm = self.constructors()
        layer = functools.partial(self.layer, conv=conv, norm=norm)
        outputs: dict[str, Any] = {}
        if part is not None and part not in self.parts:
            raise ValueError(f"part is {part!r}; allowed are {', '.join(map(str, self.parts))}.")
        names = self.modules if part is None else part
        x = images
        if "stem" in names:
            x = self.point(name="input")(x, train).astype(self.dtype)
            x = self.make_stem(layer)(x, self.learns("stem", train))
            outputs["stem"] = x
        plans = [plan for plan in self.plan.blocks if plan.name in names]
        x = self.run_blocks(plans, x, train, conv, norm, outputs)
        if names[-1] != self.modules[-1]:
            return (x, outputs) if endpoints else x
        head = self.make_head(layer)
        if head is not None:
            x = head(x, self.learns("head", train))
            outputs["head"] = x
        # The mean and the layers after it use float32: they are cheap and directly affect the loss.
        x = self.point(name="pooled")(jnp.mean(x, axis=(1, 2), dtype=jnp.float32), train)
        x = self.after_mean(x, train)
        outputs["features"] = x
        if self.num_classes:
            x = Dropout(self.dropout_rate, name="dropout")(x, train, dropout_keys)
            x = self.dense(
                self.num_classes,
                kernel_init=normal(0.01),  # torchvision's classifier
                name="classifier",
            )(x)
            x = self.point(name="logits")(x, train)
        return (x, outputs) if endpoints else x


def resolve_strides(table: Sequence[int], stage_strides: Sequence[int] | None) -> Sequence[int]:
    """The strides of the stages: `stage_strides` if given, otherwise those of the block table.

    Raises:
      ValueError: the number of strides is not the number of stages.
    """
    if stage_strides is None:
        return table
    if len(stage_strides) != len(table):
        raise ValueError(
            f"stage_strides has {len(stage_strides)} values for {len(table)} stages; give one for "
            "each stage."
        )
    return stage_strides
