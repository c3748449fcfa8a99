"""Mixed precision: how many bits each layer gets, from the loss that it causes alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mobilenet.quantize import layers
from mobilenet.quantize.rules import WEIGHTS
from mobilenet.trees import flatten


class BudgetError(ValueError):
    """No choice of bits meets a budget; the message says what is possible."""


def kernel_sizes(variables: Mapping[str, Any]) -> dict[str, int]:
    """Site of weights -> numbers in its kernel, of a quantised network's variables."""
    params = flatten(variables["params"])
    return {
        "/".join((*path[:-1], WEIGHTS)): int(np.size(leaf))
        for path, leaf in params.items()
        if path[-1] == "kernel"
    }


def weight_bits(sizes: Mapping[str, int], bits: Mapping[str, int]) -> int:
    """Size of all kernels in bits.

    Args:
      sizes: site -> numbers in its kernel.
      bits: site -> bits of each number; 0 (float) counts 32.
    """
    return sum(size * (bits[site] or 32) for site, size in sizes.items())


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of kernels.

    Attributes:
      float_bytes: in float32.
      weight_bytes: at their bits, without scales and biases.
      mean_bits: of a weight.
    """

    float_bytes: int
    weight_bytes: float
    mean_bits: float


def sizes(variables: Mapping[str, Any]) -> Sizes:
    """Sizes of a quantised network's kernels."""
    quant = flatten(variables[layers.QUANT])
    numbers = kernel_sizes(variables)
    bits = {site: int(quant[(*site.split("/"), "bits")]) for site in numbers}
    total, count = weight_bits(numbers, bits), sum(numbers.values())
    return Sizes(4 * count, total / 8, total / count)


def allocate(
    losses: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], budget: float
) -> dict[str, int]:
    """Bits for each site, with a small sum of losses, within a budget of size.

    The losses of sites are assumed to add up (Cai et al. 2020, arXiv 2001.00281, section 3.3). All
    sites start with their largest number of bits. Steps down the lower convex hull of each site's
    (size, loss) are taken in order of loss per bit saved until the budget is met. This is the best
    choice for every budget that it meets exactly. The size that is then left is used for steps up
    that fit.

    Args:
      losses: site -> bits -> loss if only that site has these bits. A loss that rises with more
        bits is noise, and is replaced by the smallest loss of fewer bits.
      sizes: site -> numbers in its kernel.
      budget: largest sum of size times bits.

    Raises:
      BudgetError: the budget is below the size at the fewest bits.
    """
    least = sum(size * min(losses[site]) for site, size in sizes.items())
    if budget < least:
        raise BudgetError(
            f"The budget is {budget:.0f} bits, but the fewest bits of every layer sum to {least}"
        )
    hulls = {site: _hull(losses[site]) for site in sizes}
    steps = [
        ((lower[1] - upper[1]) / (upper[0] - lower[0]) / sizes[site], -index, site, lower[0])
        for site, hull in hulls.items()
        for index, (lower, upper) in enumerate(zip(hull, hull[1:], strict=False))
    ]
    chosen = {site: hull[-1][0] for site, hull in hulls.items()}
    size = weight_bits(sizes, chosen)
    taken = []
    for step in sorted(steps):
        if size <= budget:
            break
        _, _, site, bits = step
        size -= sizes[site] * (chosen[site] - bits)
        taken.append((site, chosen[site]))
        chosen[site] = bits
    for site, bits in reversed(taken):  # the most expensive steps first
        more = sizes[site] * (bits - chosen[site])
        if size + more <= budget:
            size, chosen[site] = size + more, bits
    return chosen


def _hull(losses: Mapping[int, float]) -> list[tuple[int, float]]:
    """Lower convex hull of (bits, loss), by increasing bits; losses are made to fall with bits."""
    points: list[tuple[int, float]] = []
    least = float("inf")
    for bits in sorted(losses):
        least = min(least, losses[bits])
        points.append((bits, least))
    hull: list[tuple[int, float]] = []
    for point in points:
        while len(hull) > 1 and _above(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _above(a: tuple[int, float], b: tuple[int, float], c: tuple[int, float]) -> bool:
    """Whether b is on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])
