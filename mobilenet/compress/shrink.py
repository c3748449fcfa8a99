"""Channel shrinking: MobileNetV2's expanded widths are cut, which gives a smaller dense network.

The expanded channels of a block are used only within the block: as output of `expand` and of
`depthwise` with their normalisation, as rows of `squeeze`, and as input of `project`. A channel can
be removed from all of these without any effect on the shapes of other blocks. Blocks without an
expansion work on the channels of the block before them, and keep these.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mobilenet.models.mobilenet_v2 import Plan

SCORES = ("l1", "bn_scale", "taylor")


class ShrinkError(ValueError):
    """A network cannot be cut or a budget not met; the message says why and what is possible."""


def widths(plan: Plan) -> dict[str, int]:
    """Expanded channels of the blocks that can be cut: name -> width.

    Raises:
      ShrinkError: no block expands, or the expanded tensors of several blocks are added.
    """
    if any(block.shortcut == "expansion" for block in plan.blocks):
        raise ShrinkError(
            "model.shortcut is 'expansion', which adds the expanded channels of neighbouring "
            "blocks; they can only be cut with 'bottleneck' or 'none'."
        )
    found = {block.name: block.expanded_features for block in plan.blocks if block.expands}
    if not found:
        raise ShrinkError("No block of the network expands, so there is no expanded width to cut.")
    return found


def resize(plan: Plan, chosen: Mapping[str, int]) -> Plan:
    """The plan with other expanded widths."""
    blocks = [
        dataclasses.replace(
            block, expanded_features=chosen.get(block.name, block.expanded_features)
        )
        for block in plan.blocks
    ]
    return dataclasses.replace(plan, blocks=tuple(blocks))


def score_l1(params: Any, block: str) -> np.ndarray:
    """Sum of the absolute weights of each channel [E]: of its filters and of those that read it.

    The sum is divided by the block's mean, so that blocks can be compared (Li et al. 2017, arXiv
    1608.08710, only rank within a layer).
    """
    part = {name: np.abs(params[block][name]["conv"]["kernel"]) for name in _CONVOLUTIONS}
    total = part["expand"].sum((0, 1, 2)) + part["depthwise"].sum((0, 1, 2))
    total = total + part["project"].sum((0, 1, 3))
    return total / max(float(total.mean()), np.finfo(np.float32).tiny)


def score_bn_scale(params: Any, block: str) -> np.ndarray:
    """|scale| of the normalisation that `project` reads [E] (Liu et al. 2017, arXiv 1708.06519)."""
    return np.abs(np.asarray(params[block]["depthwise"]["bn"]["scale"]))


def score_taylor(params: Any, gradients: Any, block: str) -> np.ndarray:
    """The squared first-order change of the loss when a channel is removed [E].

    This is for one batch; the score is the mean over batches (Molchanov et al. 2019, arXiv
    1906.10771, equation 8). A gate at the input of `project` has the derivative sum(w dL/dw) over
    the weights that read the channel.
    Args:
      params, gradients: of the batch's mean loss.
      block: its name.
    """
    weight = np.asarray(params[block]["project"]["conv"]["kernel"])
    gradient = np.asarray(gradients[block]["project"]["conv"]["kernel"])
    return np.square((weight * gradient).sum((0, 1, 3)))


_CONVOLUTIONS = ("expand", "depthwise", "project")


def cut(
    plan: Plan,
    scores: Mapping[str, np.ndarray],
    measure: Callable[[Plan], int],
    budget: int,
    *,
    what: str = "MACs",
    divisor: int = 8,
) -> dict[str, int]:
    """Widths within a budget: the channels with the lowest scores in all blocks are cut, in groups.

    Args:
      plan: of the network.
      scores: of the channels of each block of `widths`, comparable between blocks.
      measure: plan -> its cost.
      budget: the largest allowed cost.
      what: the name of the cost, for errors.
      divisor: widths that are cut are multiples of it, and at least one multiple.

    Returns:
      Block -> width.

    Raises:
      ShrinkError: the budget is below the cost of the smallest widths, which the message names.
    """
    chosen = widths(plan)
    check_budget(plan, measure, budget, what=what, divisor=divisor)
    steps = []
    for order, (name, width) in enumerate(chosen.items()):
        ranked = np.sort(np.asarray(scores[name], np.float64))
        begin = 0
        while width > divisor:
            size = width % divisor or divisor  # the first step reaches a multiple
            steps.append((float(ranked[begin : begin + size].mean()), order, begin, name, size))
            begin, width = begin + size, width - size
    for _, _, _, name, size in sorted(steps):
        if measure(resize(plan, chosen)) <= budget:
            break
        chosen[name] -= size
    return chosen


def check_budget(
    plan: Plan,
    measure: Callable[[Plan], int],
    budget: int,
    *,
    what: str = "MACs",
    divisor: int = 8,
) -> None:
    """Raises ShrinkError if `cut`, with the same arguments, cannot meet the budget."""
    least = {name: min(width, divisor) for name, width in widths(plan).items()}
    smallest = measure(resize(plan, least))
    if smallest > budget:
        raise ShrinkError(
            f"The budget is {budget:,} {what}, but with every expanded width at {divisor} the "
            f"network still has {smallest:,}; raise the budget to at least that, or start from a "
            "smaller network."
        )


def kept_channels(scores: np.ndarray, width: int) -> np.ndarray:
    """Indices of the `width` highest scores, in increasing order; of equal ones the earlier."""
    return np.sort(np.argsort(-np.asarray(scores, np.float64), kind="stable")[:width])


def slice_block(params: Any, batch_stats: Any, keep: np.ndarray) -> tuple[Any, Any]:
    """A block's parameters and statistics with only the channels `keep`.

    Args:
      params, batch_stats: of one block, nested dictionaries of arrays.
      keep: indices of expanded channels.
    """

    def last(tree: Any) -> Any:
        if isinstance(tree, Mapping):
            return {name: last(leaf) for name, leaf in tree.items()}
        return np.asarray(tree)[..., keep]

    new = {**params, "expand": last(params["expand"]), "depthwise": last(params["depthwise"])}
    project = params["project"]
    kernel = np.asarray(project["conv"]["kernel"])[:, :, keep, :]
    new["project"] = {**project, "conv": {**project["conv"], "kernel": kernel}}
    if "se" in params:
        reduce, expand = params["se"]["reduce"], params["se"]["expand"]
        new["se"] = {
            "reduce": {**reduce, "kernel": np.asarray(reduce["kernel"])[keep]},
            "expand": last(expand),
        }
    stats = {
        **batch_stats,
        "expand": last(batch_stats["expand"]),
        "depthwise": last(batch_stats["depthwise"]),
    }
    return new, stats


def slice_network(
    params: Any, batch_stats: Any, keep: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and statistics of a network whose blocks keep these expanded channels."""
    new_params, new_stats = dict(params), dict(batch_stats)
    for name, channels in keep.items():
        new_params[name], new_stats[name] = slice_block(params[name], batch_stats[name], channels)
    return new_params, new_stats
