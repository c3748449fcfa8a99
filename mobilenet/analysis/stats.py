"""Statistics over runs. The seed is the unit of replication: n counts seeds, never images.

Intervals are two-sided. Values keep their unit; accuracies are fractions.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from scipy import optimize
from scipy import stats as distributions

# A `pandas.DataFrame`, and `Column` a `pandas.Series`; a checker cannot know what indexing gives.
Frame: TypeAlias = Any
Column: TypeAlias = Any

UNBOUNDED = (-math.inf, math.inf)
SHARE, POSITIVE = (0.0, 1.0), (0.0, math.inf)
# A metric, or the last part of its name -> the values that it can have. Accuracies are fractions.
RANGES = {
    **dict.fromkeys(("top1", "top5", "accuracy", "data_wait"), SHARE),
    **dict.fromkeys(("loss", "gradient_norm", "learning_rate", "images_per_second"), POSITIVE),
}
PERCENT = (0.0, 100.0)
POINTS = (-100.0, 100.0)  # differences of accuracies in percent


def range_of(metric: str) -> tuple[float, float]:
    """The values that a metric can have: `range_of("test_top1")` is (0, 1)."""
    return RANGES.get(metric) or RANGES.get(metric.rpartition("_")[2], UNBOUNDED)


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over seeds and the interval that holds the true mean with the asked confidence.

    Attributes:
      mean: of the values.
      std: their sample standard deviation (n - 1 below the sum); NaN for one value.
      low, high: ends of the interval, inside the values that are possible; NaN for one value.
      n: number of values.
    """

    mean: float
    std: float
    low: float
    high: float
    n: int


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} is {value!r}; it must be between 0 and 1, both excluded.")


def mean_interval(
    values: Iterable[float],
    confidence: float = 0.95,
    within: tuple[float, float] = UNBOUNDED,
) -> Interval:
    """Student's t-interval of a mean: mean +- t(n - 1) * std / sqrt(n) (Student 1908).

    Args:
      values: one for each seed, finite.
      confidence: in (0, 1).
      within: the least and the largest value that is possible, such as `PERCENT`. A t-interval
        knows of neither; its ends are cut off there.

    Returns:
      The interval; `std`, `low` and `high` are NaN for one value, which says nothing about spread.

    Raises:
      ValueError: no values, one that is not finite, or another confidence.
    """
    _check_share("confidence", confidence)
    sample = np.asarray(list(values), dtype=np.float64)
    n = sample.size
    if n == 0:
        raise ValueError("There are no values to take the mean of; give one a seed.")
    if not np.isfinite(sample).all():
        raise ValueError(f"The values {sample.tolist()} are not all finite; leave such runs out.")
    mean = float(sample.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, math.nan, 1)
    std = float(sample.std(ddof=1))
    half = float(distributions.t.ppf((1 + confidence) / 2, n - 1)) * std / math.sqrt(n)
    return Interval(mean, std, max(mean - half, within[0]), min(mean + half, within[1]), n)


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of one accuracy (Wilson 1927, J. Am. Stat. Assoc. 22, pp. 209-212).

    With z the normal quantile and p = correct / total, its ends are
    (p + z^2 / 2n +- z * sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).
    It speaks of the images of a test set, not of seeds: what another sample of images would
    give the same weights.

    Args:
      correct: images classified right, in [0, total].
      total: images, 1 or more.
      confidence: in (0, 1).

    Returns:
      (low, high), fractions in [0, 1].

    Raises:
      ValueError: counts or a confidence out of range.
    """
    _check_share("confidence", confidence)
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(
            f"{correct} correct of {total} is no accuracy; the total must be 1 or more and the "
            "correct ones between 0 and it."
        )
    z = float(distributions.norm.ppf((1 + confidence) / 2))
    share = correct / total
    middle = share + z**2 / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    scale = 1 + z**2 / total
    # Exact where rounding would leave a trace.
    low = (middle - half) / scale if correct > 0 else 0.0
    high = (middle + half) / scale if correct < total else 1.0
    return low, high


def unpaired_difference(
    a: tuple[int, int], b: tuple[int, int], confidence: float = 0.95
) -> tuple[float, float, float]:
    """The difference of two accuracies and its interval from their Wilson intervals.

    Newcombe 1998 (Statistics in Medicine 17, pp. 873-890, method 10): with l and u the ends of the
    Wilson intervals, from d - sqrt((a - la)^2 + (ub - b)^2) to d + sqrt((ua - a)^2 + (b - lb)^2).
    It takes the two as measured on images of their own. Networks that err on the same images
    differ more surely than it says.

    Args:
      a, b: (images classified right, images).
      confidence: in (0, 1).

    Returns:
      a - b, the low end and the high end, fractions in [-1, 1].

    Raises:
      ValueError: as `wilson`.
    """
    ends_a, ends_b = wilson(*a, confidence), wilson(*b, confidence)
    share_a, share_b = a[0] / a[1], b[0] / b[1]
    difference = share_a - share_b
    below = math.hypot(share_a - ends_a[0], ends_b[1] - share_b)
    above = math.hypot(ends_a[1] - share_a, share_b - ends_b[0])
    return difference, max(-1.0, difference - below), min(1.0, difference + above)


def paired_difference(
    a: Mapping[int, float],
    b: Mapping[int, float],
    confidence: float = 0.95,
    within: tuple[float, float] = UNBOUNDED,
) -> Interval:
    """The mean of a - b over the seeds that both have, with the paired t-interval (Student 1908).

    Runs of one seed share initial weights and data order as far as their configurations allow, so
    their differences spread less than the runs do.

    Args:
      a, b: seed -> value.
      confidence: in (0, 1).
      within: the least and the largest difference that is possible, such as `POINTS`.

    Returns:
      The interval of the difference; `n` counts the common seeds.

    Raises:
      ValueError: no common seed, or a value that is not finite.
    """
    common = sorted(a.keys() & b.keys())
    if not common:
        raise ValueError(
            f"The variants have no seed in common: one has {sorted(a)}, the other {sorted(b)}; "
            "train both with the same seeds."
        )
    return mean_interval([a[seed] - b[seed] for seed in common], confidence, within)


def detectable_difference(
    std: float, n: int, power: float = 0.8, confidence: float = 0.95
) -> float:
    """The smallest true paired difference that a two-sided t-test on n differences would find.

    The t statistic of a true difference d is noncentral t with n - 1 degrees of freedom and
    noncentrality d * sqrt(n) / std; the test finds it when |t| passes the central quantile (Cohen
    1988, Statistical Power Analysis for the Behavioral Sciences, chapter 2). Solved numerically.

    Args:
      std: of the differences, 0 or more, taken as the true one.
      n: number of differences.
      power: probability of finding it, in (1 - confidence, 1).
      confidence: in (0, 1); the test's level is one minus it.

    Returns:
      The difference in the unit of `std`; NaN for n < 2 or an unknown (NaN) `std`.

    Raises:
      ValueError: a value out of range.
    """
    _check_share("power", power)
    _check_share("confidence", confidence)
    if power <= 1 - confidence:
        raise ValueError(
            f"power is {power!r}; it must be above {1 - confidence:.3g}, which the test at "
            f"confidence {confidence!r} finds where there is no difference."
        )
    if std < 0:
        raise ValueError(f"std is {std!r}; a standard deviation is 0 or more.")
    if n < 2 or math.isnan(std):
        return math.nan
    critical = float(distributions.t.ppf((1 + confidence) / 2, n - 1))

    def surplus(noncentrality: float) -> float:
        upper = float(distributions.nct.sf(critical, n - 1, noncentrality))
        lower = float(distributions.nct.cdf(-critical, n - 1, noncentrality))
        # SciPy gives NaN for some lower tails that are less than its rounding.
        return upper + float(np.nan_to_num(lower)) - power

    end = 1.0
    while surplus(end) < 0:
        end *= 2
    root: Any = optimize.brentq(surplus, 0.0, end, xtol=1e-10)
    return float(root) * std / math.sqrt(n)


def levels(values: Iterable[Any]) -> list[Any]:
    """The distinct values in a fixed order: numbers, texts, tuples, None (NaN counts as None)."""
    distinct = {None if is_missing(value) else value for value in values}
    return sorted(distinct, key=_order)


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN or pandas' NA. A tuple never does."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _order(value: Any) -> tuple[int, Any]:
    if value is None:
        return 3, ""
    if isinstance(value, tuple):
        return 2, tuple(_order(v) for v in value)
    return (1, value) if isinstance(value, str) else (0, value)


def require(frame: Frame, columns: Iterable[str]) -> None:
    """Raises a ValueError that names the columns a frame lacks and those it has."""
    lacking = [name for name in columns if name not in frame.columns]
    if lacking:
        raise ValueError(
            f"The frame has no column {', '.join(lacking)}; it has "
            f"{', '.join(map(str, frame.columns))}."
        )


def summarize(
    frame: Frame, by: str | Sequence[str], value: str, *, confidence: float = 0.95
) -> Frame:
    """One row a group of runs: mean and t-interval over seeds (see `mean_interval`).

    Args:
      frame: of `load_runs`; needs the columns `status`, `seed`, `value` and those of `by`.
      by: columns whose values make a group; None is a value like others.
      value: column to summarise; intervals end where its values do (`range_of`).
      confidence: in (0, 1).

    Returns:
      The columns of `by`, then mean, std, low, high, n and seeds (a rising tuple), ordered by the
      groups' values. Only runs whose status is "done" count; a group without one stays, with n 0.

    Raises:
      ValueError: a column that does not exist, a done run without seed or value, or a seed that a
        group has twice: then the group holds different experiments, or one twice.
    """
    columns = [by] if isinstance(by, str) else list(by)
    if not columns:
        raise ValueError("`by` names no column; name at least one, such as 'group'.")
    require(frame, ["status", "seed", value, *columns])
    keys = zip(*(frame[name].tolist() for name in columns), strict=True)
    groups: dict[tuple[Any, ...], dict[int, tuple[Any, float]]] = {}
    for run, key, status, seed, number in zip(
        frame.index,
        keys,
        frame["status"].tolist(),
        frame["seed"].tolist(),
        frame[value].tolist(),
        strict=True,
    ):
        key = tuple(None if is_missing(v) else v for v in key)
        group = groups.setdefault(key, {})
        if status != "done":
            continue
        if is_missing(seed) or is_missing(number):
            lacking = "seed" if is_missing(seed) else value
            raise ValueError(f"The run {run} is done but has no {lacking}; leave it out.")
        if seed in group:
            named = ", ".join(f"{c}={v!r}" for c, v in zip(columns, key, strict=True))
            raise ValueError(
                f"The group {named} has seed {seed:g} twice: {group[seed][0]} and {run}. Add the "
                "column they differ in to `by`, or leave one out."
            )
        group[int(seed)] = (run, number)
    rows: list[dict[str, Any]] = []
    for key in sorted(groups, key=_order):
        group = groups[key]
        nothing = Interval(math.nan, math.nan, math.nan, math.nan, 0)
        values = [number for _, number in group.values()]
        interval = mean_interval(values, confidence, range_of(value)) if values else nothing
        rows.append(
            {
                **dict(zip(columns, key, strict=True)),
                **dataclasses.asdict(interval),
                "seeds": tuple(sorted(group)),
            }
        )
    names = [*columns, "mean", "std", "low", "high", "n", "seeds"]
    summary = pd.DataFrame(rows, columns=pd.Index(names))
    for name in columns:
        if any(row[name] is None for row in rows):
            # Otherwise pandas would turn None, a value of some keys, into NaN.
            summary[name] = pd.Series([row[name] for row in rows], dtype=object)
    return summary


def pareto(points: Frame, cost: str, value: str) -> Column:
    """Which rows no other row dominates: none costs no more, is no worse, and betters one of both.

    Args:
      points: one row a candidate.
      cost: column, the lower the better; value: column, the higher the better.

    Returns:
      A boolean series on the frame's index. Equal rows stand or fall together; a row that lacks its
      cost or value is never on the front and dominates nothing.

    Raises:
      ValueError: a column that does not exist.
    """
    require(points, [cost, value])
    costs = points[cost].to_numpy(dtype=np.float64, na_value=np.nan)
    values = points[value].to_numpy(dtype=np.float64, na_value=np.nan)
    # Comparisons with NaN are false, so that a row with one dominates nothing.
    front = [
        not np.any(
            (costs <= c) & (values >= v) & ((costs < c) | (values > v)),
        )
        for c, v in zip(costs, values, strict=True)
    ]
    known = ~(np.isnan(costs) | np.isnan(values))
    return pd.Series(np.array(front, dtype=bool) & known, index=points.index, name="pareto")
