"""Rewriting float weights so that they quantise better, without changing what they compute.

Everything maps variables to variables of the same network: a folded batch normalisation is one that
multiplies by 1 and adds a bias, so folded, equalised and corrected weights are evaluated, converted
and trained like any others.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mobilenet.models.mobilenet_v2 import Plan
from mobilenet.quantize.calibration import Path, flatten, fold_factors, nest

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

    Roles are "dense" for an ordinary convolution, "depthwise", and "classifier".
    """
    found: list[tuple[Path, str]] = [(("stem",), "dense")]
    for block in plan.blocks:
        if block.expands:
            found.append(((block.name, "expand"), "dense"))
        found.append(((block.name, "depthwise"), "depthwise"))
        found.append(((block.name, "project"), "dense"))
        if block.shortcut == "projection":
            found.append(((block.name, "shortcut"), "dense"))
    if plan.head_features:
        found.append((("head",), "dense"))
    return [*found, (("classifier",), "classifier")]


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
        before = (block.name, "project") if block.shortcut == "none" else None
        if block.shortcut == "expansion":
            before = (block.name, "project")
    if plan.head_features:
        if before:
            pairs.append(Pair(before, ("head",)))
        before = ("head",)
    if before:
        pairs.append(Pair(before, ("classifier",)))
    return pairs


class Folded:
    """Float weights with normalisation folded in, by layer; edited in place.

    Attributes:
      kernels: path of a layer -> kernel, float32 [k, k, C_in, C], [k, k, 1, C] or [C_in, C].
      biases: path of a layer -> bias, float32 [C].
    """

    def __init__(self, variables: Mapping[str, Any], epsilon: float) -> None:
        self._variables = variables
        self._epsilon = epsilon
        params = flatten(variables["params"])
        stats = flatten(variables["batch_stats"])
        factors = fold_factors(variables, epsilon)
        self.kernels: dict[Path, np.ndarray] = {}
        self.biases: dict[Path, np.ndarray] = {}
        for path, kernel in params.items():
            if path[-1] != "kernel":
                continue
            kernel = np.asarray(kernel, np.float32)
            if path in factors:
                layer = path[:-2]
                self.kernels[layer] = kernel * factors[path]
                self.biases[layer] = np.asarray(
                    params[(*layer, "bn", "bias")] - stats[(*layer, "bn", "mean")] * factors[path],
                    np.float32,
                )
            else:
                self.kernels[path[:-1]] = kernel.copy()
                self.biases[path[:-1]] = np.array(params[(*path[:-1], "bias")], np.float32)

    def variables(self) -> dict[str, Any]:
        """The network's variables: normalisation with scale 1, mean 0 and variance 1 - epsilon."""
        params = flatten(self._variables["params"])
        stats = flatten(self._variables["batch_stats"])
        for layer, kernel in self.kernels.items():
            bias = self.biases[layer]
            if (*layer, "conv", "kernel") in params:
                params[(*layer, "conv", "kernel")] = kernel
                params[(*layer, "bn", "scale")] = np.ones_like(bias)
                params[(*layer, "bn", "bias")] = bias
                stats[(*layer, "bn", "mean")] = np.zeros_like(bias)
                stats[(*layer, "bn", "var")] = np.full_like(bias, 1 - self._epsilon)
            else:
                params[(*layer, "kernel")], params[(*layer, "bias")] = kernel, bias
        return {
            **self._variables,
            "params": nest(params),
            "batch_stats": nest(stats),
        }


def fold(variables: Mapping[str, Any], epsilon: float) -> dict[str, Any]:
    """The same network with every batch normalisation folded into the convolution before it."""
    return Folded(variables, epsilon).variables()


def _reads(second: np.ndarray) -> np.ndarray:
    """Largest weight that reads each channel, [C]."""
    if second.ndim == 4 and second.shape[2] == 1:  # depthwise: one filter a channel
        return np.abs(second).max((0, 1, 2))
    return np.abs(second).max(tuple(range(second.ndim - 2)) + (-1,))


def _scale_inputs(kernel: np.ndarray, scale: np.ndarray) -> np.ndarray:
    if kernel.ndim == 4 and kernel.shape[2] == 1:
        return kernel * scale
    return kernel * scale[:, None]


def equalize(folded: Folded, pairs: Sequence[Pair], *, rounds: int = ROUNDS) -> dict[str, float]:
    """Gives both layers of each pair weights of one range, channel by channel, in place.

    Channel i of the first layer is divided by s_i = sqrt(r1_i / r2_i), and what reads it multiplied
    by s_i, where r are the largest weights (Nagel et al. 2019, arXiv 1906.04721, section 4.1,
    equation 11). The network computes the same as long as the activation between them scales with
    its input: identity and ReLU do, ReLU6 does not, so a network of ReLU6 must run with ReLU
    afterwards (as there, section 5.1.1), which changes it wherever 6 was reached.

    Args:
      folded: weights.
      pairs: from `find_pairs`.
      rounds: over all pairs; chains of three layers need several.

    Returns:
      What to report: the spread (largest over smallest range) of first layers' channels before and
      after, as geometric means over the pairs.
    """

    def spread() -> float:
        logs = []
        for pair in pairs:
            kernel = folded.kernels[pair.first]
            ranges = np.abs(kernel).max(tuple(range(kernel.ndim - 1)))
            ranges = ranges[ranges > 0]
            logs.append(np.log(ranges.max() / ranges.min()) if len(ranges) else 0.0)
        return float(np.exp(np.mean(logs))) if logs else 1.0

    before = spread()
    for _ in range(rounds):
        for first, second in pairs:
            kernel = folded.kernels[first]
            writes = np.abs(kernel).max(tuple(range(kernel.ndim - 1)))
            reads = _reads(folded.kernels[second])
            live = (writes > 0) & (reads > 0)  # a dead channel has no range to share
            scale = np.where(live, np.sqrt(writes / np.where(live, reads, 1)), 1.0)
            scale = scale.astype(np.float32)
            folded.kernels[first] = kernel / scale
            folded.biases[first] = folded.biases[first] / scale
            folded.kernels[second] = _scale_inputs(folded.kernels[second], scale)
    return {"channel_spread_before": before, "channel_spread_after": spread()}


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
    folded weights have them too. A depthwise layer that pads is left out: its zeros at the border
    are not c. Unchanged for every input that stays above c.

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
        kernel = folded.kernels[second]
        if first[-1] == "project" or kernel.ndim == 4 and kernel.shape[:2] != (1, 1):
            continue  # no ReLU between them, or a layer that pads
        mean, std = moments[first]
        surplus = np.maximum(0, mean - deviations * std).astype(np.float32)
        folded.biases[first] = folded.biases[first] - surplus
        folded.biases[second] = folded.biases[second] + surplus @ kernel.reshape(
            -1, kernel.shape[-1]
        )
        changed += int((surplus > 0).sum())
    return changed
