"""Statistics against SciPy, published values, and simulation."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from mobilenet.analysis import stats
from mobilenet.analysis.stats import Interval


def test_mean_interval_is_students():
    values = [0.71, 0.74, 0.72, 0.69]
    got = stats.mean_interval(values)
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert got.n == 4
    assert got.mean == pytest.approx(np.mean(values))
    assert got.std == pytest.approx(np.std(values, ddof=1))
    assert (got.low, got.high) == (pytest.approx(low), pytest.approx(high))
    wider = stats.mean_interval(values, confidence=0.99)
    assert wider.low < got.low and wider.high > got.high


def test_mean_interval_covers_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(0.7, 0.02, size=(2000, 3))
    found = [stats.mean_interval(sample, confidence=0.8) for sample in samples]
    covered = np.mean([i.low <= 0.7 <= i.high for i in found])
    # Four standard errors of a share of 2000.
    assert covered == pytest.approx(0.8, abs=4 * math.sqrt(0.8 * 0.2 / 2000))


def test_one_value_has_a_mean_and_no_interval():
    got = stats.mean_interval([0.5])
    assert (got.mean, got.n) == (0.5, 1)
    assert all(math.isnan(v) for v in (got.std, got.low, got.high))


def test_equal_values_have_an_interval_of_no_length():
    assert stats.mean_interval([0.5, 0.5]) == Interval(0.5, 0.0, 0.5, 0.5, 2)


@pytest.mark.parametrize(
    ("values", "confidence", "message"),
    [
        ([], 0.95, "no values"),
        ([0.5, math.nan], 0.95, "not all finite"),
        ([0.5], 95, "confidence is 95"),
    ],
)
def test_mean_interval_refuses(values: list[float], confidence: float, message: str):
    with pytest.raises(ValueError, match=message):
        stats.mean_interval(values, confidence)


def test_wilson_known_and_scipys_values():
    assert stats.wilson(8, 10) == (pytest.approx(0.490, abs=5e-4), pytest.approx(0.943, abs=5e-4))
    for correct, total in ((0, 7), (1, 7), (356, 360), (7146, 10000), (29, 29)):
        reference = scipy.stats.binomtest(correct, total).proportion_ci(0.9, method="wilson")
        low, high = stats.wilson(correct, total, confidence=0.9)
        assert (low, high) == (pytest.approx(reference.low), pytest.approx(reference.high))
        assert 0 <= low <= correct / total <= high <= 1


@pytest.mark.parametrize(("correct", "total"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses(correct: int, total: int):
    with pytest.raises(ValueError, match="is no accuracy"):
        stats.wilson(correct, total)


def test_paired_difference_takes_the_common_seeds():
    a, b = {0: 0.70, 1: 0.75, 2: 0.72, 9: 0.1}, {2: 0.71, 0: 0.68, 1: 0.74, 5: 0.9}
    got = stats.paired_difference(a, b)
    reference = scipy.stats.ttest_rel([0.70, 0.75, 0.72], [0.68, 0.74, 0.71])
    low, high = reference.confidence_interval(0.95)
    assert got.n == 3
    assert got.mean == pytest.approx((0.02 + 0.01 + 0.01) / 3)
    assert (got.low, got.high) == (pytest.approx(low), pytest.approx(high))
    assert stats.paired_difference(b, a).mean == pytest.approx(-got.mean)


def test_paired_difference_needs_a_common_seed():
    with pytest.raises(ValueError, match=r"one has \[0\], the other \[1\]"):
        stats.paired_difference({0: 0.5}, {1: 0.5})
    assert stats.paired_difference({0: 0.5, 1: 0.1}, {0: 0.25}).n == 1


def test_detectable_difference_is_cohens():
    # Cohen 1988, table 2.4.1: 34 pairs find d = 0.5 with a power of 0.8 (two-sided, 0.05), 33 miss.
    assert stats.detectable_difference(1.0, 34) < 0.5 < stats.detectable_difference(1.0, 33)
    assert stats.detectable_difference(0.02, 34) == pytest.approx(
        0.02 * stats.detectable_difference(1.0, 34)
    )


@pytest.mark.parametrize(
    ("n", "power", "confidence"), [(2, 0.8, 0.9), (3, 0.8, 0.95), (5, 0.5, 0.99)]
)
def test_a_detectable_difference_is_found_that_often(n: int, power: float, confidence: float):
    true = stats.detectable_difference(0.02, n, power, confidence)
    samples = np.random.default_rng(1).normal(true, 0.02, size=(20_000, n))
    tests: Any = scipy.stats.ttest_1samp(samples, 0, axis=1)
    found = np.mean(tests.pvalue < 1 - confidence)
    assert found == pytest.approx(power, abs=4 * math.sqrt(power * (1 - power) / 20_000))


def test_detectable_difference_of_few_and_of_equal_runs():
    assert math.isnan(stats.detectable_difference(0.02, 1))
    assert math.isnan(stats.detectable_difference(math.nan, 3))
    assert stats.detectable_difference(0.0, 3) == 0.0
    # Where SciPy's noncentral t is NaN in one tail.
    assert math.isfinite(stats.detectable_difference(1.0, 14, power=0.999999, confidence=0.999))


@pytest.mark.parametrize(
    ("std", "power", "message"), [(-1.0, 0.8, "std is"), (1.0, 0.05, "above"), (1.0, 1.0, "power")]
)
def test_detectable_difference_refuses(std: float, power: float, message: str):
    with pytest.raises(ValueError, match=message):
        stats.detectable_difference(std, 3, power)


def runs() -> pd.DataFrame:
    rows = [
        ("a0", "done", 0, 6.0, "se", 0.70),
        ("a1", "done", 1, 6.0, "se", 0.74),
        ("b0", "done", 0, 1.0, "none", 0.60),
        ("b1", "failed", 1, 1.0, "none", math.nan),
        ("c0", "diverged", 0, 4.0, "none", math.nan),
    ]
    names = ["run", "status", "seed", "t", "attention", "test_top1"]
    return pd.DataFrame(rows, columns=pd.Index(names)).set_index("run")


def test_summarize_counts_done_runs_and_shows_every_group():
    got = stats.summarize(runs(), "t", "test_top1")
    assert got.columns.tolist() == ["t", "mean", "std", "low", "high", "n", "seeds"]
    assert got["t"].tolist() == [1.0, 4.0, 6.0]
    assert got["n"].tolist() == [1, 0, 2]
    assert got["seeds"].tolist() == [(0,), (), (0, 1)]
    assert got["mean"].tolist() == pytest.approx([0.60, math.nan, 0.72], nan_ok=True)
    expected = stats.mean_interval([0.70, 0.74])
    assert (got["low"][2], got["high"][2]) == (expected.low, expected.high)
    narrow = stats.summarize(runs(), "t", "test_top1", confidence=0.5)
    assert narrow["high"][2] < expected.high


def test_summarize_by_several_columns_with_none_and_tuples():
    frame = runs().assign(se=[0.25, 0.25, None, None, (1, 2)], test_top1=0.5)
    frame["se"] = frame["se"].astype(object)
    got = stats.summarize(frame, ["attention", "se"], "test_top1")
    keys = list(zip(got["attention"].tolist(), got["se"].tolist(), got["n"].tolist(), strict=True))
    assert keys == [("none", (1, 2), 0), ("none", None, 1), ("se", 0.25, 2)]


def test_summarize_refuses_a_repeated_seed():
    with pytest.raises(ValueError, match=r"attention='se' has seed 0 twice: a0 and a1"):
        stats.summarize(runs().assign(seed=0), "attention", "test_top1")


def test_summarize_refuses_what_is_missing():
    with pytest.raises(ValueError, match=r"no column width; it has status, seed"):
        stats.summarize(runs(), "width", "test_top1")
    with pytest.raises(ValueError, match="names no column"):
        stats.summarize(runs(), [], "test_top1")
    with pytest.raises(ValueError, match="a1 is done but has no test_top1"):
        stats.summarize(runs().assign(test_top1=[0.7, None, 0.6, None, None]), "t", "test_top1")


def test_pareto_keeps_what_nothing_dominates():
    points = pd.DataFrame(
        {
            "macs": [10, 20, 20, 30, 40, 10, math.nan, 5],
            "top1": [0.5, 0.6, 0.55, 0.6, 0.7, 0.5, 0.9, math.nan],
        },
        index=pd.Index(list("abcdefgh")),
    )
    front = stats.pareto(points, "macs", "top1")
    assert front.index[front].tolist() == ["a", "b", "e", "f"]
    assert not stats.pareto(points.iloc[:0], "macs", "top1").any()


def test_pareto_agrees_with_the_definition():
    rng = np.random.default_rng(2)
    points = pd.DataFrame({"macs": rng.integers(1, 9, 40), "top1": rng.integers(1, 9, 40)})
    rows = list(zip(points["macs"].tolist(), points["top1"].tolist(), strict=True))
    expected = [
        not any(m <= cost and v >= value and (m, v) != (cost, value) for m, v in rows)
        for cost, value in rows
    ]
    assert stats.pareto(points, "macs", "top1").tolist() == expected


def test_levels_are_in_a_fixed_order():
    values = ["b", None, 6, (1, 2), 0.5, "a", math.nan, 6.0, (1, None)]
    assert stats.levels(values) == [0.5, 6, "a", "b", (1, 2), (1, None), None]


def test_intervals_of_accuracies_end_at_what_is_possible():
    # 99, 100, 100: t(2) = 4.303, so that the interval would end at 101.1.
    found = stats.mean_interval([99.0, 100.0, 100.0], within=stats.PERCENT)
    assert found.high == 100.0 and found.low == pytest.approx(98.232, abs=1e-3)
    assert stats.mean_interval([99.0, 100.0, 100.0]).high > 101
    # 2 and 60 points: t(1) = 12.7.
    paired = stats.paired_difference({0: 2.0, 1: 60.0}, {0: 0.0, 1: 0.0}, within=stats.POINTS)
    assert (paired.low, paired.high) == (-100.0, 100.0)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("test_top1", (0.0, 1.0)), ("top5", (0.0, 1.0)), ("loss", (0.0, math.inf)),
     ("wall_seconds", (-math.inf, math.inf))],
)  # fmt: skip
def test_metrics_have_ranges(metric: str, expected: tuple[float, float]):
    assert stats.range_of(metric) == expected


def test_summaries_of_accuracies_stay_inside_0_and_1():
    frame = pd.DataFrame(
        {"status": "done", "seed": [0, 1], "test_top1": [0.99, 1.0], "g": "a", "other": [0.99, 1.0]}
    )
    assert stats.summarize(frame, "g", "test_top1")["high"].item() == 1.0
    assert stats.summarize(frame, "g", "other")["high"].item() > 1.0


def test_differences_of_two_accuracies():
    # Newcombe 1998, table II, contrast (a): 56/70 - 48/80 = 0.2, 95 % from 0.0524 to 0.3339.
    found = stats.unpaired_difference((56, 70), (48, 80))
    assert found == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert stats.unpaired_difference((10, 10), (0, 10))[2] == 1.0
