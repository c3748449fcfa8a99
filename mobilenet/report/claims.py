"""What the papers claim, as data; verdicts of our runs on it; rows and tables of both.

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
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilenet import rundir
from mobilenet.analysis import stats
from mobilenet.analysis.runs import processor
from mobilenet.analysis.stats import Interval
from mobilenet.report import results
from mobilenet.report import rows as table_rows
from mobilenet.report.results import ResultError, copy_logs

POWER = 0.8
LOGGED = ("config.json", "summary.json", "metrics.jsonl", "point.json")
TABLE = "ablations"
SANDLER = "Sandler et al. 2018, arXiv 1801.04381"
CONFIRMED, CONTRADICTED, INCONCLUSIVE = "confirmed", "contradicted", "inconclusive"


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim of a paper.

    Attributes:
      name: on the command line.
      source: paper and place.
      statement: what is claimed, in a sentence.
      published: the printed figure, or what the text says without one.
      check: how it is judged. "analytic": by arithmetic (`mobilenet.report.analytic`). "higher":
        the first variant is more accurate than the second. "equivalent": they differ by less than
        `margin`.
      experiment: its file, for claims that need runs; its `comparisons` name the two variants.
      margin: of "equivalent", in percentage points, chosen before anything was measured.
      recalled: the statement was not read in its source: no threshold, only a direction.
    """

    name: str
    source: str
    statement: str
    published: str
    check: str
    experiment: str = ""
    margin: float = 0.0
    recalled: bool = False


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "fig6a",
        f"{SANDLER}, Fig. 6a, sections 3.2 and 6.4",
        "Linear bottlenecks are more accurate than bottlenecks with ReLU6.",
        "higher; a curve without numbers",
        "higher",
        "experiments/ablations/bottleneck.py",
    ),
    Claim(
        "fig6b_expansion",
        f"{SANDLER}, Fig. 6b, section 6.4",
        "Shortcuts between bottlenecks are better than shortcuts between expanded layers.",
        "higher; a curve without numbers",
        "higher",
        "experiments/ablations/shortcut.py",
    ),
    Claim(
        "fig6b_none",
        f"{SANDLER}, Fig. 6b",
        "Shortcuts between expanded layers are better than none.",
        "higher; a curve without numbers",
        "higher",
        "experiments/ablations/shortcut.py",
        recalled=True,
    ),
    Claim(
        "expansion_5_to_10",
        f"{SANDLER}, section 4",
        "Expansion ratios of 5 to 10 give nearly the same accuracy at the same cost: here 10 and 6 "
        "at nearly equal MACs, within 1 point.",
        "nearly the same curves, without numbers",
        "equivalent",
        "experiments/ablations/expansion.py",
        margin=1.0,
    ),
    Claim(
        "se",
        "Hou et al. 2021, arXiv 2103.02907; README of houqb/CoordAttention",
        "Squeeze-and-excitation makes MobileNetV2 more accurate.",
        "+1.2 points on ImageNet (72.3 to 73.5)",
        "higher",
        "experiments/ablations/squeeze_excite.py",
    ),
    Claim(
        "head",
        f"{SANDLER}, section 4",
        "Below width 1 the last 1x1 convolution is better kept wide than thinned.",
        "higher; no numbers",
        "higher",
        "experiments/ablations/head.py",
    ),
    Claim(
        "fig5_width",
        f"{SANDLER}, Fig. 5",
        "Accuracy rises with the width multiplier.",
        "higher; +11.5 points on ImageNet from 0.35 to 1.0 at 224 px (released checkpoints)",
        "higher",
        "experiments/ablations/width_resolution.py",
    ),
    Claim(
        "fig5_resolution",
        f"{SANDLER}, Fig. 5",
        "Accuracy rises with the resolution.",
        "higher; +11.5 points on ImageNet from 96 to 224 px at width 1.0 (released checkpoints)",
        "higher",
        "experiments/ablations/width_resolution.py",
    ),
    Claim(
        "table1",
        f"{SANDLER}, Table 1",
        "A block is a 1x1 expansion, a 3x3 depthwise layer with the stride, a 1x1 projection.",
        "h x w x k to h/s x w/s x k'",
        "analytic",
    ),
    Claim(
        "table2",
        f"{SANDLER}, Table 2",
        "The network's inputs, ratios, channels, repeats and strides.",
        "11 rows",
        "analytic",
    ),
    Claim(
        "table3",
        f"{SANDLER}, Table 3",
        "The most channels, and the memory in 16 bits, between bottlenecks at each resolution.",
        "16/32/64/160/320/1280 channels, at most 400 kB",
        "analytic",
    ),
    Claim(
        "table4_params",
        f"{SANDLER}, Table 4",
        "Parameters at widths 1.0 and 1.4.",
        "3.4 M, 6.9 M",
        "analytic",
    ),
    Claim(
        "table4_macs",
        f"{SANDLER}, Table 4",
        "Multiply-adds at widths 1.0 and 1.4, within 1 %.",
        "300 M, 585 M",
        "analytic",
    ),
    Claim(
        "checkpoint_costs",
        "tensorflow/models: research/slim/nets/mobilenet/README.md",
        "Weights and multiply-adds of the released checkpoints.",
        "22 rows",
        "analytic",
    ),
    Claim(
        "fig5_range",
        f"{SANDLER}, section 4",
        "The family spans 7 to 585 M multiply-adds and 1.7 to 6.9 M parameters.",
        "7 to 585 M, 1.7 to 6.9 M",
        "analytic",
    ),
    Claim(
        "block_cost",
        f"{SANDLER}, section 3.3",
        "A stride-1 block with an expansion costs h w d' t (d' + k^2 + d'') multiply-adds.",
        "the formula",
        "analytic",
    ),
    Claim(
        "bottlenecks",
        f"{SANDLER}, section 4",
        "The network has 19 residual bottleneck layers.",
        "19",
        "analytic",
    ),
    Claim(
        "shortcuts",
        "tensorflow/models: research/slim/nets/mobilenet/conv_blocks.py",
        "A block has a shortcut when its stride is 1 and its channels agree.",
        "10 of 17 blocks",
        "analytic",
    ),
    Claim(
        "head_width",
        f"{SANDLER}, section 4",
        "Widths below 1 do not thin the last 1x1 convolution.",
        "1280 channels",
        "analytic",
    ),
    Claim(
        "expansion_below_1",
        f"{SANDLER}, section 3.4",
        "An expansion ratio below 1 gives the classical residual bottleneck.",
        "structure",
        "analytic",
    ),
    Claim(
        "se_params",
        "Hou et al. 2021, arXiv 2103.02907; README of houqb/CoordAttention",
        "Parameters with squeeze-and-excitation in every block.",
        "3.89 M",
        "analytic",
    ),
    Claim(
        "t_way_split",
        f"{SANDLER}, section 5.1",
        "A block computed in groups of channels has the same outputs and multiply-adds in less "
        "memory.",
        "equal outputs and multiply-adds",
        "analytic",
    ),
)


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


def make_rows(
    claim: Claim,
    scale: str,
    variants: Mapping[str, Measured],
    comparison: tuple[str, str],
    *,
    logs: str = "",
    remarks: str = "",
) -> list[dict[str, str]]:
    """The rows of a claim: its two variants, and the experiment's others beside them.

    Args:
      claim: that the runs were made for.
      scale: of the runs.
      variants: name -> what was measured; the two of the comparison and any others to show.
      comparison: names of the variant that is claimed to be better and of the one compared with.
      logs: where the logs are, below experiments/results.
      remarks: what a reader must know beside the numbers.

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
    return f"logs/{TABLE}/{scale}"


def add(
    results: Path,
    scale: str,
    found: Sequence[tuple[Claim, Mapping[str, Measured], tuple[str, str]]],
    remarks: str = "",
) -> list[dict[str, str]]:
    """Copies the runs' logs beside the table and replaces the rows of the scale.

    Args:
      results: the experiments/results directory.
      scale: of the runs.
      found: claim, its variants, and the two that it compares; claims of which no variant
        was begun are not run and have no rows.
      remarks: what a reader must know beside the numbers.

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
    target = results / logs_of(scale)
    shutil.rmtree(target, ignore_errors=True)
    for _, variants, _ in found:
        for variant in variants.values():
            for run in variant.variant.runs.values():
                # Unfinished ones too: the verdict counts them.
                logs = target / run.name
                if rundir.status(run) != "pending" and not logs.exists():  # claims share variants
                    copy_logs(run, logs, [file for file in LOGGED if (run / file).exists()])
    path = results / f"{TABLE}.csv"
    others = [row for row in table_rows.read(path) if row["scale"] != scale]
    order = [claim.name for claim in CLAIMS]
    # Sorting is stable: variants stay in their order.
    both = sorted([*others, *made], key=lambda row: (row["scale"], order.index(row["claim"])))
    table_rows.write(path, FIELDS, both)
    return made


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """README tables of committed rows: one for each scale, with one row for each variant."""
    known = {claim.name: claim for claim in CLAIMS}
    parts = []
    for scale in dict.fromkeys(row["scale"] for row in rows):
        lines = [
            f"Scale `{scale}`, logs in [`{logs_of(scale)}`](experiments/results/{logs_of(scale)}):",
            "",
            "| claim | variant | top-1 % [95 % interval], n | difference, points | verdict "
            "| params | MACs |",
            "|---|---|---|---|---|---|---|",
        ]
        before = ""
        for row in (row for row in rows if row["scale"] == scale):
            claim = known[row["claim"]]
            title = "" if row["claim"] == before else f"`{claim.name}`: {claim.statement}"
            if title and claim.recalled:
                title += " (recalled, not read)"
            before = row["claim"]
            lines.append(
                f"| {title} | {row['variant']} | {_accuracy(row)} | {_difference(row)} | "
                f"{_judged(row)} | {_count(row['params'])} | {_macs(row['macs'])} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _accuracy(row: Mapping[str, str]) -> str:
    if not row["top1_mean"]:
        return "not run"
    interval = f" [{row['low']}, {row['high']}]" if row["low"] else ""
    return f"{row['top1_mean']}{interval}, {len(row['seeds'].split())}"


def _difference(row: Mapping[str, str]) -> str:
    if not row["difference"]:
        return "–"
    ends = [f"{float(row[k]):+.2f}" for k in ("difference_low", "difference_high") if row[k]]
    interval = f" [{', '.join(ends)}]" if ends else ""
    return f"{float(row['difference']):+.2f}{interval}"


def _judged(row: Mapping[str, str]) -> str:
    if not row["verdict"]:
        return f"compared with {row['baseline']}" if row["baseline"] else "–"
    detectable = f"; detectable {row['detectable']}" if row["detectable"] else ""
    return f"**{row['verdict']}**: {row['reason']}{detectable}"


def _count(text: str) -> str:
    return f"{int(text):,}" if text else "–"


def _macs(text: str) -> str:
    return f"{int(text) / 1e6:.1f} M" if text else "–"
