"""Ranges of tensors from their values: five estimators over a histogram, and ranges of weights.

Calibration reads activations batch by batch on the host. For each tensor it stores the extremes, a
moving average of each batch's extremes, and a histogram. The estimator then chooses the range.
"""

from typing import NamedTuple

import numpy as np

from mobilenet.quantize import numerics
from mobilenet.quantize.rules import ESTIMATORS, WEIGHT_ESTIMATORS

# Weight of a batch's extremes in their moving average over calibration batches (PyTorch's default).
AVERAGING = 0.01
# Largest number of bins in a histogram; at least half of this number lie between the extremes.
BINS = 8192
CHUNK = 2**20  # numbers that are binned at a time: their bins take several times their memory
CANDIDATES = 100  # ranges that the search for the least squared error tries along one end


class NotFinite(ValueError):
    """A tensor that holds NaN or infinity has no range."""


class Range(NamedTuple):
    """Lowest and highest real that a grid must cover."""

    low: float
    high: float


class Observer:
    """The statistics of one tensor during calibration.

    The width of bins is a power of two, and their edges are its multiples. So bins merge exactly in
    pairs when the tensor's range grows, and the order of batches does not change the histogram.

    Attributes:
      low, high: extremes of all values.
      average: moving average of each batch's extremes (Jacob et al. 2017, section 3.1).
      count: number of values.
    """

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.average: Range | None = None
        self.count = 0
        self._exponent = -126  # of the bins' width, a power of two
        self._start = 0  # number of the first bin; bin 0 starts at 0
        self._counts = np.zeros(0, np.int64)

    def update(self, x: np.ndarray) -> None:
        """Adds one batch of the tensor, float [...].

        Raises:
          NotFinite: the batch holds NaN or infinity.
        """
        if x.size == 0:
            return
        low, high = float(x.min()), float(x.max())
        if not np.isfinite([low, high]).all():
            raise NotFinite("it holds NaN or infinity")
        self.count += x.size
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.average is None:
            self.average = Range(low, high)
        else:
            old = self.average
            self.average = Range(
                old.low + AVERAGING * (low - old.low), old.high + AVERAGING * (high - old.high)
            )
        self._cover()
        flat = x.reshape(-1)
        for begin in range(0, flat.size, CHUNK):
            part = flat[begin : begin + CHUNK].astype(np.float64)
            numbers = np.floor(np.ldexp(part, -self._exponent)).astype(np.int64)
            self._counts += np.bincount(numbers - self._start, minlength=len(self._counts))

    def _cover(self) -> None:
        """Widens bins until at most BINS lie between the extremes."""
        # The second bound keeps the bins' numbers within 40 bits if a tensor hardly varies.
        sizes = (self.high - self.low) / (BINS - 2), max(-self.low, self.high) * 2.0**-40
        exponent = max([self._exponent, *(int(np.ceil(np.log2(x))) for x in sizes if x > 0)])
        old, start = self._counts, self._start
        for _ in range(exponent - self._exponent if len(old) else 0):
            if start % 2:
                old, start = np.concatenate([[0], old]), start - 1
            if len(old) % 2:
                old = np.concatenate([old, [0]])
            old, start = old[::2] + old[1::2], start // 2
            if len(old) == 1 and start in (0, -1):
                break  # a single bin next to 0 keeps its number, however wide bins become
        first, last = (int(np.floor(np.ldexp(end, -exponent))) for end in (self.low, self.high))
        if len(old):
            first, last = min(first, start), max(last, start + len(old) - 1)
        counts = np.zeros(last - first + 1, np.int64)
        counts[start - first : start - first + len(old)] = old
        self._exponent, self._start, self._counts = exponent, first, counts

    @property
    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """(centres float64 [n], counts int64 [n]) of the bins, in increasing order."""
        numbers = self._start + np.arange(len(self._counts))
        return np.ldexp(numbers + 0.5, self._exponent), self._counts

    def range(
        self, estimator: str, bits: int, *, symmetric: bool, percentile: float = 99.99
    ) -> Range:
        """The range that an estimator chooses.

        Args:
          estimator: "min_max": the extremes. "moving_average": of each batch's extremes.
            "percentile": leaves (100 - percentile) % of the numbers outside, half on each side if
            the tensor has both signs. "mse": least squared error of rounding and clipping together.
            "kl": least divergence of the distribution after rounding from that before (Migacz 2017,
            "8-bit inference with TensorRT", GTC).
          bits: of the codes; used by mse and kl.
          symmetric: of the grid; used by mse.
          percentile: in (50, 100].

        Raises:
          NotFinite: nothing was observed.
        """
        if self.average is None:
            raise NotFinite("no value of it was observed")
        full = Range(self.low, self.high)
        if estimator == "min_max" or full.low == full.high:
            return full
        if estimator == "moving_average":
            return self.average
        if estimator == "percentile":
            return self._percentile(percentile)
        if estimator == "mse":
            return self._least_error(bits, symmetric)
        if estimator == "kl":
            return self._least_divergence(bits)
        raise ValueError(f"The estimator is {estimator!r}; allowed are {', '.join(ESTIMATORS)}.")

    def _percentile(self, percentile: float) -> Range:
        centres, counts = self.histogram
        below, above = self.low < 0, self.high > 0
        outside = self.count * (100 - percentile) / 100 / (2 if below and above else 1)
        left_out = int(outside + 1e-6)  # an integer, in spite of rounding errors
        until = np.cumsum(counts)
        low = centres[np.searchsorted(until, left_out, "right")] if below else self.low
        high = centres[np.searchsorted(until, self.count - left_out)] if above else self.high
        return Range(float(max(low, self.low)), float(min(high, self.high)))

    def _least_error(self, bits: int, symmetric: bool) -> Range:
        centres, counts = self.histogram
        used = counts > 0
        centres, counts = centres[used], counts[used]
        signed = not symmetric or self.low < 0

        def best(lows: np.ndarray, highs: np.ndarray) -> Range:
            low, high = (np.broadcast_to(x, np.broadcast_shapes(lows.shape, highs.shape))
                         for x in (lows, highs))  # fmt: skip
            error = np.empty(len(low))
            for begin in range(0, len(low), 10):  # a few at a time: 8192 bins each
                part = slice(begin, begin + 10)
                grid = numerics.make_grid(
                    low[part, None], high[part, None], bits, symmetric=symmetric, signed=signed
                )
                rounded = numerics.from_codes(
                    numerics.to_codes(centres.astype(np.float32), grid), grid
                )
                error[part] = np.square(np.asarray(rounded, np.float64) - centres) @ counts
            found = int(np.argmin(error))
            return Range(float(low[found]), float(high[found]))

        shares = np.linspace(1.0, 1 / CANDIDATES, CANDIDATES)
        low, high = best(self.low * shares, self.high * shares)
        if self.low < 0 < self.high and not symmetric:
            # The ends of an asymmetric tensor shrink by different amounts: each end once.
            low, high = best(np.asarray([low]), self.high * shares)
            low, high = best(self.low * shares, np.asarray([high]))
        return Range(low, high)

    def _least_divergence(self, bits: int) -> Range:
        centres, counts = self.histogram
        two_sided = self.low < 0 < self.high
        magnitudes = np.abs(centres)
        levels = 2 ** (bits - 1 if two_sided else bits)
        width = 2.0**self._exponent
        number = np.floor(magnitudes / width).astype(np.int64)
        folded = np.bincount(number, weights=counts.astype(np.float64))
        most = len(folded)
        if most <= levels:
            return Range(self.low, self.high)
        ends = np.unique(np.linspace(levels, most, CANDIDATES).astype(int))
        divergences = [_divergence(folded, int(end), levels) for end in ends]
        clip = float(ends[int(np.argmin(divergences))] * width)
        return Range(max(self.low, -clip), min(self.high, clip))


def _divergence(counts: np.ndarray, end: int, levels: int) -> float:
    """KL divergence after rounding the first `end` bins to `levels` codes and clipping the rest."""
    kept = counts[:end].copy()
    kept[-1] += counts[end:].sum()
    # Bins of one level share its mass equally, except empty bins.
    level = np.minimum(np.arange(end) * levels // end, levels - 1)
    filled = counts[:end] > 0
    mass = np.bincount(level, weights=counts[:end], minlength=levels)
    members = np.bincount(level, weights=filled, minlength=levels)
    shared = np.where(filled, mass[level] / np.maximum(members[level], 1), 0.0)
    if not shared.sum():
        return np.inf
    p, q = kept / kept.sum(), shared / shared.sum()
    # A bin that holds only clipped mass has no counterpart; a small value keeps the sum finite.
    q = np.maximum(q, 1e-9)
    present = p > 0
    return float(np.sum(p[present] * np.log(p[present] / q[present])))


def weight_range(
    kernel: np.ndarray,
    bits: int,
    *,
    per_channel: bool,
    symmetric: bool,
    estimator: str = "min_max",
    percentile: float = 99.99,
) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of a kernel [..., C]: float32 [C], or scalars when not `per_channel`.

    Args:
      kernel: float32, finite.
      bits: of the codes; "mse" depends on them.
      per_channel: a range for each index of the last axis.
      symmetric: of the grid.
      estimator: one of WEIGHT_ESTIMATORS, as in `Observer.range`.
      percentile: in (50, 100]; of magnitudes.

    Raises:
      NotFinite: the weights have NaN or infinity.
    """
    if not np.isfinite(kernel).all():
        raise NotFinite("it holds NaN or infinity")
    channels = kernel.reshape(-1, kernel.shape[-1] if per_channel else 1)
    if not per_channel:
        channels = kernel.reshape(-1, 1)
    low, high = channels.min(0), channels.max(0)
    if estimator == "percentile":
        bound = np.percentile(np.abs(channels), percentile, axis=0)
        low, high = np.maximum(low, -bound), np.minimum(high, bound)
    elif estimator == "mse":
        best = np.full(channels.shape[1], np.inf)
        chosen = np.stack([low, high])
        for share in np.linspace(1.0, 0.2, 81):
            grid = numerics.make_grid(
                share * low, share * high, bits, symmetric=symmetric, narrow=symmetric
            )
            rounded = numerics.from_codes(numerics.to_codes(channels, grid), grid)
            error = np.square(np.asarray(rounded) - channels).sum(0)
            better = error < best
            best = np.where(better, error, best)
            chosen = np.where(better, share * np.stack([low, high]), chosen)
        low, high = chosen
    elif estimator != "min_max":
        raise ValueError(
            f"The estimator is {estimator!r}; allowed for weights are "
            f"{', '.join(WEIGHT_ESTIMATORS)}."
        )
    low, high = low.astype(np.float32), high.astype(np.float32)
    return (low, high) if per_channel else (low[0], high[0])
