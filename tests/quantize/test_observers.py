"""Ranges: each estimator against a plain computation on the numbers themselves."""

from typing import Any

import numpy as np
import pytest

from mobilenet.quantize.observers import BINS, NotFinite, Observer, weight_range


def observed(*batches: Any) -> Observer:
    observer = Observer()
    for batch in batches:
        observer.update(np.asarray(batch, np.float32))
    return observer


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rounded(x: np.ndarray, low: float, high: float, bits: int, *, symmetric: bool) -> np.ndarray:
    """What a grid over the range makes of `x`, in NumPy alone."""
    low, high = min(low, 0.0), max(high, 0.0)
    lowest = -(2 ** (bits - 1)) if x.min() < 0 or not symmetric else 0
    highest = lowest + 2**bits - 1
    if symmetric:
        scale, zero = max(high, -low if lowest else 0.0) / highest, 0
    else:
        scale = (high - low) / (2**bits - 1)
        zero = round(lowest - low / scale)
    return (np.clip(np.round(x / scale) + zero, lowest, highest) - zero) * scale


def width(observer: Observer) -> float:
    """Of a bin, as wide as the docstring of the histogram allows: all next to each other."""
    centres, _ = observer.histogram
    return float(centres[1] - centres[0])


# ---- what is remembered


def test_extremes_and_their_moving_average():
    observer = observed([-1.0, 4.0], [-3.0, 2.0], [[0.5], [1.0]])
    assert observer.range("min_max", 8, symmetric=False) == (-3.0, 4.0)
    # A share of 0.01 of each later batch: -1, then -1.02, then -1.0048.
    low = (-1 + 0.01 * -2) + 0.01 * (0.5 + 1.02)
    high = (4 + 0.01 * -2) + 0.01 * (1.0 - 3.98)
    found = observer.range("moving_average", 8, symmetric=False)
    np.testing.assert_allclose(found, (low, high), rtol=1e-6)
    assert observer.count == 6


def test_bins_hold_the_numbers_between_their_edges():
    x = normal(5000)
    observer = observed(x)
    centres, counts = observer.histogram
    assert BINS / 2 - 1 <= len(counts) <= BINS
    half = width(observer) / 2
    expected, _ = np.histogram(x, np.append(centres - half, centres[-1] + half))
    np.testing.assert_array_equal(counts, expected)
    assert counts.sum() == len(x)


def test_growth_keeps_counts_and_their_order_does_not_matter():
    batches = [normal(1000, seed=i + 3) * 10.0**i - i for i in range(-3, 4)]
    rising, falling = observed(*batches), observed(*batches[::-1])
    whole = observed(np.concatenate(batches))
    for other in (falling, whole):
        for ours, theirs in zip(rising.histogram, other.histogram, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert rising.histogram[1].sum() == rising.count == 7000
    assert (rising.low, rising.high) == (whole.low, whole.high)


@pytest.mark.parametrize("tiny", [0.0, 1e-30, -1e-30, 1e-44])
def test_growth_from_next_to_nothing(tiny: float):
    observer = observed([tiny, tiny], [-1.0, 2.0, 2.0])
    centres, counts = observer.histogram
    np.testing.assert_array_equal(counts[counts > 0], [1, 2, 2])
    np.testing.assert_allclose(centres[counts > 0], [-1, 0, 2], atol=width(observer))


def test_large_batches_are_binned_in_parts(monkeypatch: pytest.MonkeyPatch):
    x = normal(3, 7, 11)
    whole = observed(x).histogram
    monkeypatch.setattr("mobilenet.quantize.observers.CHUNK", 10)
    for ours, theirs in zip(observed(x).histogram, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float):
    observer = observed([1.0, 2.0])
    with pytest.raises(NotFinite, match="it holds NaN or infinity"):
        observer.update(np.asarray([0.0, bad], np.float32))
    with pytest.raises(NotFinite, match="it holds NaN or infinity"):
        weight_range(np.asarray([[0.0, bad]]), 8, per_channel=True, symmetric=True)


def test_without_numbers_there_is_no_range():
    observer = observed(np.zeros((0, 3)))
    with pytest.raises(NotFinite, match="no value of it was observed"):
        observer.range("min_max", 8, symmetric=True)


@pytest.mark.parametrize("estimator", ["min_max", "moving_average", "percentile", "mse", "kl"])
@pytest.mark.parametrize("value", [0.0, 3.5, -2.0])
def test_a_constant_tensor_has_a_range_of_one_number(estimator: str, value: float):
    observer = observed(np.full(10, value), np.full(5, value))
    assert observer.range(estimator, 8, symmetric=False) == (value, value)


def test_unknown_estimators_are_refused():
    with pytest.raises(ValueError, match="'median'; allowed are min_max, moving_average"):
        observed([1.0, 2.0]).range("median", 8, symmetric=True)
    with pytest.raises(ValueError, match="'kl'; allowed for weights are min_max, percentile"):
        weight_range(normal(4, 2), 8, per_channel=True, symmetric=True, estimator="kl")


# ---- percentile


@pytest.mark.parametrize("percentile", [99.9, 97.0])
def test_percentile_leaves_that_share_of_the_numbers_outside(percentile: float):
    x = normal(4, 5000)
    observer = observed(*x)
    found = observer.range("percentile", 8, symmetric=False, percentile=percentile)
    outside = round(20_000 * (100 - percentile) / 200)  # of either side
    ordered = np.sort(x, axis=None)
    expected = (ordered[outside], ordered[-1 - outside])
    np.testing.assert_allclose(found, expected, atol=width(observer))
    numpys = np.percentile(x, [(100 - percentile) / 2, (100 + percentile) / 2])
    np.testing.assert_allclose(expected, numpys, atol=0.01)  # which interpolates


def test_percentile_of_one_side_clips_that_side():
    x = np.abs(normal(20_000))
    end = np.sort(x)[-1 - 200]
    observer = observed(x)
    low, high = observer.range("percentile", 8, symmetric=False, percentile=99.0)
    assert low == observer.low
    np.testing.assert_allclose(high, end, atol=width(observer))
    low, high = observed(-x).range("percentile", 8, symmetric=False, percentile=99.0)
    np.testing.assert_allclose(low, -end, atol=width(observer))
    assert high == -x.min()


def test_the_hundredth_percentile_is_the_extreme():
    observer = observed(normal(1000))
    found = observer.range("percentile", 8, symmetric=False, percentile=100.0)
    np.testing.assert_allclose(found, (observer.low, observer.high), atol=width(observer))


# ---- least squared error


def squared_error(x: np.ndarray, low: float, high: float, bits: int, symmetric: bool) -> float:
    return float(np.square(rounded(x, low, high, bits, symmetric=symmetric) - x).mean())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["heavy", "relu", "lopsided"])
def test_mse_is_as_good_as_brute_force(kind: str, symmetric: bool, bits: int):
    x = normal(4000) ** 3
    x = {"heavy": x, "relu": np.maximum(x, 0), "lopsided": np.where(x > 0, 5 * x, x)}[kind]
    found = observed(x).range("mse", bits, symmetric=symmetric)
    shares = np.linspace(0.02, 1, 60)
    lows = shares if x.min() < 0 and not symmetric else [1.0]
    tried = [
        squared_error(x, (high if symmetric else low) * x.min(), high * x.max(), bits, symmetric)
        for low in lows
        for high in shares
    ]
    # Both search on grids of their own: 3 % is what neighbours of the best differ by.
    assert squared_error(x, *found, bits, symmetric) <= 1.03 * min(tried)
    if bits == 4:  # clipping pays
        assert found.high < 0.9 * x.max()


# ---- least divergence


def test_kl_clips_an_outlier_and_not_a_uniform_tensor():
    x = normal(20_000)
    with_outlier = np.append(x, [40.0])
    found = observed(with_outlier).range("kl", 8, symmetric=True)
    assert 3.0 < found.high < 12.0 and found.low == x.min()
    uniform = np.random.default_rng(0).uniform(-1, 1, 50_000).astype(np.float32)
    for estimated in (uniform, np.abs(uniform)):
        observer = observed(estimated)
        found = observer.range("kl", 8, symmetric=True)
        np.testing.assert_allclose(found, (observer.low, observer.high), atol=0.02)


def test_kl_clips_more_at_fewer_bits():
    observer = observed(normal(50_000) ** 3)
    ends = [observer.range("kl", bits, symmetric=True).high for bits in (4, 6, 8)]
    assert ends[0] < ends[1] < ends[2]


def test_kl_leaves_a_tensor_with_fewer_bins_than_codes():
    observer = observed(normal(100))
    assert observer.range("kl", 16, symmetric=False) == (observer.low, observer.high)


# ---- weights


KERNEL = np.stack([normal(50), 10 * normal(50, seed=1) ** 3, np.zeros(50)], -1).reshape(5, 5, 2, 3)


def test_weights_have_their_extremes_by_channel_or_together():
    low, high = weight_range(KERNEL, 8, per_channel=True, symmetric=True)
    np.testing.assert_array_equal(low, KERNEL.min((0, 1, 2)))
    np.testing.assert_array_equal(high, KERNEL.max((0, 1, 2)))
    assert low.dtype == high.dtype == np.float32
    low, high = weight_range(KERNEL, 8, per_channel=False, symmetric=True)
    assert low.shape == high.shape == () and (low, high) == (KERNEL.min(), KERNEL.max())


def test_percentile_of_weights_is_of_magnitudes():
    low, high = weight_range(
        KERNEL, 8, per_channel=True, symmetric=True, estimator="percentile", percentile=90.0
    )
    for channel in range(3):
        weights = KERNEL[..., channel]
        bound = np.percentile(np.abs(weights), 90.0)
        np.testing.assert_allclose(low[channel], max(weights.min(), -bound), rtol=1e-6)
        np.testing.assert_allclose(high[channel], min(weights.max(), bound), rtol=1e-6)


@pytest.mark.parametrize("per_channel", [True, False])
def test_mse_of_weights_is_as_good_as_brute_force(per_channel: bool):
    found = weight_range(KERNEL, 3, per_channel=per_channel, symmetric=True, estimator="mse")
    parts = KERNEL.reshape(-1, 3).T if per_channel else KERNEL.reshape(1, -1)

    def error(weights: np.ndarray, low: float, high: float) -> float:
        scale = max(-low, high) / 3 or 1.0
        values = np.clip(np.round(weights / scale), -3, 3) * scale
        return float(np.square(values - weights).sum())

    for weights, low, high in zip(parts, *map(np.atleast_1d, found), strict=True):
        shares = np.linspace(0.05, 1, 200)
        best = min(error(weights, s * weights.min(), s * weights.max()) for s in shares)
        assert error(weights, low, high) <= 1.02 * best + 1e-12
    if per_channel:
        assert found[1][0] < 0.9 * KERNEL[..., 0].max()  # clipping pays
