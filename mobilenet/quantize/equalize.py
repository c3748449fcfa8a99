"""Changes float weights so that they quantise better, while the network computes the same."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mobilenet.models.mobilenet_v2 import Plan
from mobilenet.quantize.fold import Folded, is_depthwise
from mobilenet.trees import Path

# Rounds over all pairs. The scales of chains converge geometrically; after 20 rounds, within 1 %.
ROUNDS = 20


class Pair(NamedTuple):
    """Two layers that can exchange scale, channel by channel: only the second reads the first.

    `first` and `second` are paths of layers, such as ("blocks_1_0", "expand").
    """

    first: Path
    second: Path


def layer_order(plan: Plan) -> list[tuple[Path, str]]:
    """Paths of the layers in order of computation, each with its role.

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
    """Pairs of layers without another reader of the tensor between them, in order of computation.

    Squeeze-and-excitation and shortcuts between expanded tensors also read it, so they exclude a
    pair.
    """
    pairs: list[Pair] = []
    before: Path | None = ("stem",)  # the layer whose output only the next layer reads
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
    """Largest weight that computes each channel, [C]."""
    return np.abs(first).max(tuple(range(first.ndim - 1)))


def equalize(
    folded: Folded,
    pairs: Sequence[Pair],
    *,
    reach: Mapping[Path, np.ndarray] | None = None,
    ceiling: float = 6.0,
    rounds: int = ROUNDS,
) -> dict[str, float]:
    """Gives both layers of each pair weights of the same range, channel by channel, in place.

    Channel i of the first layer is divided by s_i = sqrt(r1_i / r2_i), and the weights that read it
    are multiplied by s_i, where r are the largest weights (Nagel et al. 2019, arXiv 1906.04721,
    section 4.1, equation 11). Some channels have no weights on one side: their value is constant,
    or never read. On the other side they would keep a range that the layer's single scale must
    cover, so their range is reduced to the largest of the other channels.

    The network computes the same if the activation between the layers scales with its input.
    Identity and ReLU do, ReLU6 does not. So a network with ReLU6 must afterwards run with ReLU (as
    in section 5.1.1), which changes it wherever 6 was reached. Alternatively, `reach` says how far
    a channel is from 6: channels that reach it keep their scale, and the others stay below it.

    Args:
      folded: weights.
      pairs: from `find_pairs`.
      reach: layer whose activation has a ceiling -> its largest observed input, [C].
      ceiling: of these activations.
      rounds: over all pairs; chains of three layers need several.

    Returns:
      A report: the spread (largest over smallest range) of first layers' channels before and after,
      as geometric means over the pairs.
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
    """The factor that divides each channel's writer and multiplies its reader, [C]."""
    live = (writes > 0) & (reads > 0)
    scale = np.where(live, np.sqrt(writes / np.where(live, reads, 1)), 1.0)
    if not live.any():
        return scale
    largest = np.sqrt(writes[live] * reads[live]).max()  # of both sides, after scaling
    unwritten, unread = (writes == 0) & (reads > largest), (reads == 0) & (writes > largest)
    scale[unwritten] = largest / reads[unwritten]
    scale[unread] = writes[unread] / largest
    return scale


def _limits(largest: np.ndarray, ceiling: float) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest divisor of each channel that keep it on its side of the ceiling, [C]."""
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
    """Moves biases that ReLU always lets through into the layer after it, in place.

    After equalisation some channels have large biases, and activations therefore have a large
    range. If a channel's input to ReLU is almost always above c = max(0, mean - 3 std), c is
    subtracted from its bias, and its effect, W c, is added to the next layer's bias (Nagel et al.
    2019, section 4.1.3, equations 13-15). The moments are measured, so that folded weights have
    them too; the paper reads them from batch normalisation. Depthwise layers are excluded, because
    their zero padding is not c. The output is unchanged for every input that stays above c.

    Args:
      folded: weights.
      pairs: from `find_pairs`.
      moments: layer -> (mean, standard deviation) [C] of the input of its activation.
      deviations: number of deviations below the mean that counts as always.

    Returns:
      Number of changed channels.
    """
    changed = 0
    for first, second in pairs:
        if is_depthwise(second) or first[-1] == "project":  # no ReLU after a bottleneck
            continue
        mean, std = moments[first]
        surplus = np.maximum(0, mean - deviations * std)
        folded.add_bias(first, -surplus)
        # The input of the next layer is lower by the surplus, and so are its products.
        kernel = folded.raw(second)
        folded.move_products(second, -surplus @ kernel.reshape(-1, kernel.shape[-1]))
        changed += int((surplus > 0).sum())
    return changed
