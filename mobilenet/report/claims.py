"""Verdicts of runs on what the papers claim, and their committed rows.

A claim about accuracy compares two variants of one experiment over seeds. The runs of a seed share
initial values and data order, so the difference is taken seed by seed, and judged by its 95 %
t-interval. Accuracies are of the test split with the final weights, in percent, by a recipe that
was fixed before; differences are in percentage points.

    experiments/results/ablations.csv                  one row for each variant of a claim
    experiments/results/logs/ablations/SCALE/KEY/      configuration, summary and metrics of a run
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilenet import rundir
from mobilenet.analysis import stats
from mobilenet.analysis.runs import processor
from mobilenet.analysis.stats import Interval
from mobilenet.report import results
from mobilenet.report.claim_list import CLAIMS, Claim
from mobilenet.report.results import ResultError
from mobilenet.report.table import Table

POWER = 0.8
LOGGED = ("config.json", "summary.json", "metrics.jsonl", "point.json")
CONFIRMED, CONTRADICTED, INCONCLUSIVE = "confirmed", "contradicted", "inconclusive"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A judged claim.

    Attributes:
      verdict: "confirmed", "contradicted" or "inconclusive".
      reason: in a sentence.
      difference: first variant minus second over their common seeds, in points; None without one.
      seeds: that both variants have finished.
      detectable: the smallest true difference that so many seeds would find with a power of 80 %,
        given the spread that was measured; NaN for fewer than two seeds.
    """

    verdict: str
    reason: str
    difference: Interval | None
    seeds: tuple[int, ...]
    detectable: float

    @property
    def text(self) -> str:
        """The difference with its interval, seeds and detectable difference."""
        count = len(self.seeds)
        shown = f"{count} seed{'s' if count > 1 else ''}"
        if self.difference is None:
            return "no seed in both variants"
        if count < 2:
            return f"{self.difference.mean:+.2f} points, {shown}, no interval"
        return (
            f"{self.difference.mean:+.2f} points [{self.difference.low:+.2f}, "
            f"{self.difference.high:+.2f}], {shown}; detectable at 80 % power: "
            f"{self.detectable:.2f}"
        )


def judge(
    claim: Claim,
    first: Mapping[int, float],
    second: Mapping[int, float],
    unfinished: Sequence[str] = (),
) -> Verdict:
    """Judges a claim about accuracy.

    Args:
      claim: with `check` "higher" or "equivalent".
      first: seed -> accuracy in percent of the variant that is claimed to be better.
      second: of the variant that it is compared with.
      unfinished: runs of the two variants that did not finish, with their status. One is enough
        for "inconclusive": what is left is no longer a sample that was chosen beforehand.

    Returns:
      The verdict. "higher" is confirmed by an interval above zero and contradicted by one below it;
      "equivalent" is confirmed by an interval inside the margin and contradicted by one outside it.

    Raises:
      ValueError: a claim that is judged otherwise.
    """
    if claim.check not in ("higher", "equivalent"):
        raise ValueError(f"{claim.name} is judged by {claim.check!r}; only runs are judged here.")
    seeds = tuple(sorted(first.keys() & second.keys()))
    if not seeds:
        reason = (
            "not run" if not (first or second or unfinished) else "a variant has no finished run"
        )
        if unfinished:
            reason += f": {', '.join(unfinished)}"
        return Verdict(INCONCLUSIVE, reason, None, (), math.nan)
    difference = stats.paired_difference(first, second, within=stats.POINTS)
    detectable = stats.detectable_difference(difference.std, len(seeds), POWER)

    def verdict(name: str, reason: str) -> Verdict:
        return Verdict(name, reason, difference, seeds, detectable)

    if unfinished:
        return verdict(INCONCLUSIVE, f"runs are missing: {', '.join(unfinished)}")
    if len(seeds) < 2:
        return verdict(INCONCLUSIVE, "one seed has no interval")
    low, high = difference.low, difference.high
    if claim.check == "higher":
        if low > 0:
            return verdict(CONFIRMED, "the interval is above zero")
        if high < 0:
            return verdict(CONTRADICTED, "the interval is below zero")
        return verdict(INCONCLUSIVE, "the interval covers zero")
    margin = claim.margin
    if -margin < low and high < margin:
        return verdict(CONFIRMED, f"the interval is inside +-{margin:g}")
    if low >= margin or high <= -margin:
        return verdict(CONTRADICTED, f"the interval is outside +-{margin:g}")
    return verdict(INCONCLUSIVE, f"the interval crosses +-{margin:g}")


# ------------------------------------------------------------------------------- variants from runs


@dataclasses.dataclass(frozen=True)
class Variant:
    """One variant of an experiment and the run directories of its seeds.

    Attributes:
      name, overrides: as the experiment file has them, without the seed.
      runs: seed -> run directory, whether it exists or not.
    """

    name: str
    overrides: Mapping[str, Any]
    runs: Mapping[int, Path]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the runs of a variant gave.

    Attributes:
      top1: seed -> test accuracy in percent, of finished runs.
      unfinished: "NAME, seeds N M: STATUS" of the others.
      started: whether any run has begun.
      summaries, configs: of finished runs, as they were written.
    """

    variant: Variant
    top1: Mapping[int, float]
    unfinished: tuple[str, ...]
    started: bool
    summaries: tuple[Mapping[str, Any], ...]
    configs: tuple[Mapping[str, Any], ...]

    @property
    def interval(self) -> Interval | None:
        """Mean and 95 % interval over seeds; None without a finished run."""
        return stats.mean_interval(self.top1.values(), within=stats.PERCENT) if self.top1 else None


def measure(variant: Variant) -> Measured:
    """Reads the runs of a variant.

    Raises:
      ResultError: a finished run without test metrics, or with another seed than its variant says.
    """
    top1: dict[int, float] = {}
    others: dict[str, list[str]] = {}
    summaries, configs = [], []
    for seed, run in sorted(variant.runs.items()):
        status = rundir.status(run)
        if status != "done":
            others.setdefault(status, []).append(str(seed))
            continue
        summary, config = results.read_summary(run, ()), results.read_config(run)
        if "test" not in summary:
            raise ResultError(f"{run} has no test metrics; its data set needs a test split.")
        if config["seed"] != seed:
            raise ResultError(f"{run} has seed {config['seed']}, and its variant expects {seed}.")
        top1[seed] = 100 * summary["test"]["top1"]
        summaries.append(summary)
        configs.append(config)
    unfinished = tuple(
        f"{variant.name}, seed{'s' if len(seeds) > 1 else ''} {' '.join(seeds)}: {status}"
        for status, seeds in others.items()
    )
    started = bool(top1) or any(status != "pending" for status in others)
    return Measured(variant, top1, unfinished, started, tuple(summaries), tuple(configs))


def judge_variants(claim: Claim, first: Measured, second: Measured) -> Verdict:
    """`judge` on the runs of two variants; "not run" while nobody has begun one of them."""
    if not (first.started and second.started):
        return judge(claim, {}, {})
    return judge(claim, first.top1, second.top1, (*first.unfinished, *second.unfinished))


# --------------------------------------------------------------------------- committed results

FIELDS = (
    "claim",
    "scale",
    "variant",
    "role",
    "config",
    "overrides",
    "seeds",
    "top1_mean",
    "top1_std",
    "low",
    "high",
    "baseline",
    "difference",
    "difference_low",
    "difference_high",
    "detectable",
    "verdict",
    "reason",
    "params",
    "macs",
    "train_examples",
    "test_examples",
    "epochs",
    "processor",
    "versions",
    "commit",
    "logs",
    "remarks",
)
TABLE = Table("ablations", FIELDS, by="scale", page="ablations")


def make_rows(
    claim: Claim,
    scale: str,
    variants: Mapping[str, Measured],
    comparison: tuple[str, str],
    *,
    logs: str = "",
    remarks: str = "",
) -> list[dict[str, str]]:
    """The rows of a claim: its two variants, and the experiment's others with them.

    Args:
      claim: that the runs were made for.
      scale: of the runs.
      variants: name -> what was measured; the two of the comparison and any others to show.
      comparison: names of the variant that is claimed to be better and of the one compared with.
      logs: where the logs are, below experiments/results.
      remarks: what a reader must know next to the numbers.

    Raises:
      ResultError: finished runs of a variant that differ in more than their seed.
    """
    first, second = variants[comparison[0]], variants[comparison[1]]
    judged = judge_variants(claim, first, second)
    made = []
    for name in (*comparison, *(other for other in variants if other not in comparison)):
        variant = variants[name]
        row = dict.fromkeys(FIELDS, "")
        row |= {
            "claim": claim.name,
            "scale": scale,
            "variant": name,
            "config": f"{claim.experiment}:{scale}",
            "overrides": json.dumps(dict(variant.variant.overrides), sort_keys=True),
            "seeds": " ".join(map(str, variant.top1)),
            "logs": logs,
            "remarks": remarks,
        }
        if name in comparison:
            row["role"] = "claimed" if name == comparison[0] else "compared"
        if variant.interval is not None:
            row |= _numbers("top1_mean", "low", "high", variant.interval)
            row["top1_std"] = _number(variant.interval.std)
            row |= _provenance(variant)
        common = variant.top1.keys() & second.top1.keys()
        if name != comparison[1] and common:
            difference = stats.paired_difference(variant.top1, second.top1, within=stats.POINTS)
            row["baseline"] = comparison[1]
            row |= _numbers("difference", "difference_low", "difference_high", difference)
        if name == comparison[0]:
            row |= {
                "verdict": judged.verdict,
                "reason": judged.reason,
                "detectable": _number(judged.detectable),
            }
        made.append(row)
    return made


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _numbers(mean: str, low: str, high: str, interval: Interval) -> dict[str, str]:
    return {
        mean: _number(interval.mean),
        low: _number(interval.low),
        high: _number(interval.high),
    }


def _provenance(variant: Measured) -> dict[str, str]:
    """What a variant's runs have in common; machines, versions and commits may be several."""

    def one(name: str, values: Sequence[Any]) -> str:
        distinct = list(dict.fromkeys(map(str, values)))
        if len(distinct) > 1:
            raise ResultError(
                f"The runs of the variant {variant.variant.name!r} differ in {name}: "
                f"{', '.join(distinct)}."
            )
        return distinct[0]

    def several(values: Sequence[Any]) -> str:
        return "; ".join(dict.fromkeys(map(str, values)))

    summaries = variant.summaries
    return {
        "params": one("parameters", [s["params"] for s in summaries]),
        "macs": one("MACs", [s["macs"] for s in summaries]),
        "train_examples": one("training size", [s["examples"]["train"] for s in summaries]),
        "test_examples": one("test size", [s["test"]["examples"] for s in summaries]),
        "epochs": one("epochs", [f"{c['train']['num_epochs']:g}" for c in variant.configs]),
        "processor": several(list(map(processor, summaries))),
        "versions": several(
            [" ".join(f"{k}={v}" for k, v in s["versions"].items()) for s in summaries]
        ),
        "commit": several([s["commit"] for s in summaries]),
    }


def was_run(variants: Mapping[str, Measured], comparison: tuple[str, str]) -> bool:
    """Whether both variants that a claim compares have begun."""
    return all(variants[name].started for name in comparison)


def logs_of(scale: str) -> str:
    """Where the logs of a scale's runs are, below experiments/results."""
    return f"logs/{TABLE.name}/{scale}"


def add(
    directory: Path,
    scale: str,
    found: Sequence[tuple[Claim, Mapping[str, Measured], tuple[str, str]]],
    remarks: str = "",
) -> list[dict[str, str]]:
    """Copies the runs' logs next to the table and replaces the rows of the scale.

    Args:
      directory: experiments/results.
      scale: of the runs.
      found: claim, its variants, and the two that it compares; claims of which no variant
        was begun are not run and have no rows.
      remarks: what a reader must know next to the numbers.

    Returns:
      The rows of the scale.

    Raises:
      ResultError: no claim was run, or as `make_rows`.
    """
    found = [entry for entry in found if was_run(*entry[1:])]
    if not found:
        raise ResultError(
            f"No claim was run at scale {scale}; `mobilenet reproduce fig6a --scale={scale}` runs "
            "one."
        )
    made = [
        row
        for claim, variants, comparison in found
        for row in make_rows(
            claim, scale, variants, comparison, logs=logs_of(scale), remarks=remarks
        )
    ]
    # Claims share variants; unfinished runs go along, as the verdict counts them.
    runs = {
        run.name: run
        for _, variants, _ in found
        for variant in variants.values()
        for run in variant.variant.runs.values()
        if rundir.status(run) != "pending"
    }
    results.replace_logs(directory / logs_of(scale), runs, LOGGED)
    order = [claim.name for claim in CLAIMS]
    # Sorting is stable: variants stay in their order.
    TABLE.add(directory, sorted(made, key=lambda row: order.index(row["claim"])))
    return made
