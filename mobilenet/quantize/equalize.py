"""Rewriting float weights so that they quantise better, without changing what they compute."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mobilenet.models.mobilenet_v2 import Plan
from mobilenet.quantize.fold import Folded, is_depthwise
from mobilenet.trees import Path

# Rounds over all pairs; the scales of chains converge geometrically, and 20 leave less than 1 %.
ROUNDS = 20


class Pair(NamedTuple):
    """Two layers whose channels can trade scale: the first's outputs are read by the second alone.

    `first` and `second` are paths of layers, such as ("blocks_1_0", "expand").
    """

    first: Path
    second: Path


def layer_order(plan: Plan) -> list[tuple[Path, str]]:
    """Paths of the layers in order of computation, with a role each.

    Roles are "dense" for an ordinary convolution, "depthwise", and "linear" for the layers of
    squeeze-and-excitation and the classifier.
    """
    found: list[tuple[Path, str]] = [(("stem",), "dense")]
    for block in plan.blocks:
        if block.expands:
            found.append(((block.name, "expand"), "dense"))
        found.append(((block.name, "depthwise"), "depthwise"))
        if block.squeeze_features:
            found += [((block.name, "se", name), "linear") for name in ("reduce", "expand")]
        found.append(((block.name, "project"), "dense"))
        if block.shortcut == "projection":
            found.append(((block.name, "shortcut"), "dense"))
    if plan.head_features:
        found.append((("head",), "dense"))
    return [*found, (("classifier",), "linear")]


def find_pairs(plan: Plan) -> list[Pair]:
    """Pairs of layers between which nothing else reads the tensor, in order of computation.

    Squeeze-and-excitation and shortcuts between expanded tensors read it too and leave a pair out.
    """
    pairs: list[Pair] = []
    before: Path | None = ("stem",)  # whose output the next layer alone reads
    for index, block in enumerate(plan.blocks):
        after = plan.blocks[index + 1] if index + 1 < len(plan.blocks) else None
        if block.shortcut in ("identity", "projection"):
            before = None
        if block.expands:
            if before:
                pairs.append(Pair(before, (block.name, "expand")))
            before = (block.name, "expand")
        expanded = (block, after) if after else (block,)
        if any(b.shortcut == "expansion" for b in expanded):
            before = None
        if before:
            pairs.append(Pair(before, (block.name, "depthwise")))
        if not block.squeeze_features:
            pairs.append(Pair((block.name, "depthwise"), (block.name, "project")))
        added = block.shortcut in ("identity", "projection")
        before = None if added else (block.name, "project")
    if plan.head_features:
        if before:
            pairs.append(Pair(before, ("head",)))
        before = ("head",)
    if before:
        pairs.append(Pair(before, ("classifier",)))
    return pairs


def _reads(folded: Folded, second: Path) -> np.ndarray:
    """Largest weight that reads each channel, [C]."""
    kernel = np.abs(folded.kernel(second))
    return kernel.max((0, 1, 2) if is_depthwise(second) else (*range(kernel.ndim - 2), -1))


def _writes(first: np.ndarray) -> np.ndarray:
    """Largest weight that makes each channel, [C]."""
    return np.abs(first).max(tuple(range(first.ndim - 1)))


def equalize(
    folded: Folded,
    pairs: Sequence[Pair],
    *,
    reach: Mapping[Path, np.ndarray] | None = None,
    ceiling: float = 6.0,
    rounds: int = ROUNDS,
) -> dict[str, float]:
    """Gives both layers of each pair weights of one range, channel by channel, in place.

    Channel i of the first layer is divided by s_i = sqrt(r1_i / r2_i), and what reads it multiplied
    by s_i, where r are the largest weights (Nagel et al. 2019, arXiv 1906.04721, section 4.1,
    equation 11). A channel that has no weights on one side, whose value never varies or is never
    read, would keep a range on the other that the layer's one scale must span: there it shrinks to
    the largest of the others.

    The network computes the same as long as the activation between them scales with its input:
    identity and ReLU do, ReLU6 does not. So a network of ReLU6 must run with ReLU afterwards (as
    there, section 5.1.1), which changes it wherever 6 was reached; or `reach` says what a channel
    may do without touching 6: one that reaches it keeps its scale, the others stay below.

    Args:
      folded: weights.
      pairs: from `find_pairs`.
      reach: layer whose activation has a ceiling -> largest input of it that was seen, [C].
      ceiling: of these activations.
      rounds: over all pairs; chains of three layers need several.

    Returns:
      What to report: the spread (largest over smallest range) of first layers' channels before and
      after, as geometric means over the pairs.
    """

    def spread() -> float:
        logs = []
        for pair in pairs:
            ranges = _writes(folded.kernel(pair.first))
            ranges = ranges[ranges > 0]
            logs.append(np.log(ranges.max() / ranges.min()) if len(ranges) else 0.0)
        return float(np.exp(np.mean(logs))) if logs else 1.0

    before = spread()
    limits = {path: _limits(largest, ceiling) for path, largest in (reach or {}).items()}
    taken = {path: np.ones_like(least) for path, (least, _) in limits.items()}
    for _ in range(rounds):
        for first, second in pairs:
            scale = _trade(_writes(folded.kernel(first)), _reads(folded, second))
            if first in limits:
                scale = np.clip(taken[first] * scale, *limits[first]) / taken[first]
                taken[first] *= scale
            folded.scale_outputs(first, 1 / scale)
            folded.scale_inputs(second, scale)
    return {"channel_spread_before": before, "channel_spread_after": spread()}


def _trade(writes: np.ndarray, reads: np.ndarray) -> np.ndarray:
    """What to divide each channel's writer and multiply its reader by, [C]."""
    live = (writes > 0) & (reads > 0)
    scale = np.where(live, np.sqrt(writes / np.where(live, reads, 1)), 1.0)
    if not live.any():
        return scale
    largest = np.sqrt(writes[live] * reads[live]).max()  # of both, when scaled
    unwritten, unread = (writes == 0) & (reads > largest), (reads == 0) & (writes > largest)
    scale[unwritten] = largest / reads[unwritten]
    scale[unread] = writes[unread] / largest
    return scale


def _limits(largest: np.ndarray, ceiling: float) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest divisor of each channel that leave it on its side of the ceiling, [C]."""
    clips = largest >= ceiling
    least = np.where(clips, 1.0, np.maximum(largest, 0) / ceiling)
    return least, np.where(clips, 1.0, np.inf)


def absorb_biases(
    folded: Folded,
    pairs: Sequence[Pair],
    moments: Mapping[Path, tuple[np.ndarray, np.ndarray]],
    *,
    deviations: float = 3.0,
) -> int:
    """Moves biases that ReLU always lets through into the layer behind it, in place.

    After equalisation some channels have large biases, and so activations a large range. Where a
    channel's input to ReLU is above c = max(0, mean - 3 std) almost always, c is taken off its bias
    and its effect, W c, added to the next layer's (Nagel et al. 2019, section 4.1.3, equations
    13-15). The moments are measured, where the paper reads them off batch normalisation, so that
    folded weights have them too. Depthwise layers are left out: the zeros that they pad with are
    not c. Unchanged for every input that stays above c.

    Args:
      folded: weights.
      pairs: from `find_pairs`.
      moments: layer -> (mean, standard deviation) [C] of what its activation gets.
      deviations: below the mean that count as always.

    Returns:
      Number of channels that were changed.
    """
    changed = 0
    for first, second in pairs:
        if is_depthwise(second) or first[-1] == "project":  # no ReLU behind a bottleneck
            continue
        mean, std = moments[first]
        surplus = np.maximum(0, mean - deviations * std)
        folded.add_bias(first, -surplus)
        # What the next layer reads, and so its products, lie lower by that.
        kernel = folded.raw(second)
        folded.move_products(second, -surplus @ kernel.reshape(-1, kernel.shape[-1]))
        changed += int((surplus > 0).sum())
    return changed
