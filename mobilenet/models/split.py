"""The t-way split of an inverted residual (Sandler et al. 2018, arXiv 1801.04381, section 5.1).

Between the expansion and the projection the expanded channels are independent: the depthwise
convolution and the activations work on each channel separately, and the projection is a sum over
channels. So a block can be computed in groups of expanded channels, and only one group is in memory
at a time. The output and the MACs are the same, with less memory.
`mobilenet.models.cost.peak_activation` computes this memory as "block_split".

The argument `split_expansion` of the released code is something else: it splits the 1x1
convolution itself into groups, which changes the function.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float

from mobilenet.models.layers import ConvBNAct
from mobilenet.models.mobilenet_v2 import BlockPlan, InvertedResidual


def part_plans(plan: BlockPlan, parts: int) -> list[BlockPlan]:
    """The block's plan for each group of expanded channels; their MACs add up to the block's.

    Args:
      plan: of the whole block.
      parts: groups; all but the last have ceil(expanded_features / parts) channels.

    Raises:
      ValueError: the number of groups is not possible, or the expanded channels of the block are
        not independent: squeeze-and-excitation mixes them, and a shortcut between expansions needs
        all of them.
    """
    if plan.squeeze_features or plan.shortcut == "expansion":
        reason = "squeeze-and-excitation" if plan.squeeze_features else "shortcut='expansion'"
        raise ValueError(
            f"{plan.name} has {reason}, which needs all expanded channels at once; only blocks "
            "without it can be split."
        )
    if not 1 <= parts <= plan.expanded_features:
        raise ValueError(
            f"parts is {parts}; {plan.name} can be split into 1 to {plan.expanded_features} groups "
            "of its expanded channels."
        )
    width = -(-plan.expanded_features // parts)
    starts = range(0, plan.expanded_features, width)
    return [
        dataclasses.replace(plan, expanded_features=min(width, plan.expanded_features - start))
        for start in starts
    ]


def apply_split(
    block: InvertedResidual,
    variables: Mapping[str, Any],
    x: Float[Array, "B H W C"],
    parts: int,
) -> Float[Array, "B h w F"]:
    """Computes a block in groups of expanded channels, with stored BN statistics.

    Args:
      block: as the network builds it.
      variables: its `params` and `batch_stats`.
      x: the block's input.
      parts: groups of expanded channels.

    Returns:
      The value of `block.apply(variables, x, None, False)[0]`, up to the order of one sum.

    Raises:
      ValueError: as `part_plans`.
    """
    plan = block.plan

    def layer(name: str, features: int, channels: slice, y: Array, **settings: Any) -> Array:
        """A submodule of the block on some of its output channels."""
        module = ConvBNAct(conv=block.conv, norm=block.norm, features=features, **settings)
        own = {kind: variables[kind][name] for kind in ("params", "batch_stats")}
        chosen = jax.tree.map(lambda leaf: leaf[..., channels], own)
        result: Any = module.apply(chosen, y, False)
        return result

    def project(y: Array, channels: slice) -> Array:
        """This group's share of the projection, before batch normalisation."""
        kernel = variables["params"]["project"]["conv"]["kernel"][:, :, channels, :]
        share: Any = block.conv(features=plan.features).apply({"params": {"kernel": kernel}}, y)
        return share

    total: Any = None
    start = 0
    for part in part_plans(plan, parts):
        channels = slice(start, start := start + part.expanded_features)
        width, activation = part.expanded_features, block.activation
        if plan.expands:
            y = layer("expand", width, channels, x, activation=activation)
        else:
            y = x[..., channels]
        y = layer(
            "depthwise",
            width,
            channels,
            y,
            kernel_size=block.kernel_size,
            strides=plan.strides,
            dilation=plan.dilation,
            depthwise=True,
            activation=activation,
        )
        share = project(y, channels)
        total = share if total is None else total + share
    norm = block.norm(activation=block.bottleneck_activation)
    stored = {kind: variables[kind]["project"]["bn"] for kind in ("params", "batch_stats")}
    out: Any = norm.apply(stored, total, use_running_average=True)
    if plan.shortcut == "identity":
        return out + x
    if plan.shortcut == "projection":
        return out + layer("shortcut", plan.features, slice(None), x, activation="identity")
    return out
