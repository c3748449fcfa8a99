"""Committed results of experiments whose file names its arms: a row an arm, with its interval.

experiments/results/TABLE.csv
experiments/results/logs/TABLE/EXPERIMENT/KEY/     config, summary, metrics of every run
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilenet import rows as table_rows
from mobilenet import rundir
from mobilenet.analysis import results, stats
from mobilenet.analysis.results import ResultError, one
from mobilenet.sweep import space

FIELDS = (
    "experiment",
    "arm",
    "config",
    "overrides",
    "split",
    "examples",
    "top1",
    "low",
    "high",
    "interval",
    "seeds",
    "against",
    "difference",
    "difference_low",
    "difference_high",
    "epochs",
    "train_examples",
    "mean_bits",
    "weight_bytes",
    "seconds_mean",
    "device",
    "processor",
    "versions",
    "commit",
    "logs",
    "remarks",
)
# What an interval speaks of: other seeds, or, of a single run, other pictures.
SEEDS, PICTURES = "t over seeds", "Wilson over pictures"
LOGGED = (*results.LOGGED, "point.json", "quantization.json")

Row = Mapping[str, str]


def find_runs(directory: Path, arms: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Path]]:
    """Arm -> its run directories by seed.

    Args:
      directory: whose sub-directories are the runs of a sweep, with `point.json`.
      arms: name -> what it overrides, besides the seed, which texts may name (`space.filled`).

    Raises:
      ResultError: an arm without a run, or a run that is not done.
    """
    by_overrides: dict[str, Path] = {}
    seeds: set[int] = set()
    for path in sorted(directory.glob("*/point.json")):
        overrides = {"seed": 0, **json.loads(path.read_text())["overrides"]}
        seeds.add(overrides["seed"])
        by_overrides[_canonical(overrides)] = path.parent
    found = {}
    for name, overrides in arms.items():
        wanted = [_canonical(space.filled({**overrides, "seed": seed})) for seed in sorted(seeds)]
        runs = [by_overrides[each] for each in wanted if each in by_overrides]
        if not runs:
            raise ResultError(
                f"{directory} has no run of the arm {name!r}; finish the sweep first."
            )
        for run in runs:
            if rundir.status(run) != "done":
                raise ResultError(f"{run} is {rundir.status(run)}, not done; finish it first.")
        found[name] = runs
    return found


def _canonical(overrides: Mapping[str, Any]) -> str:
    return json.dumps(overrides, sort_keys=True)


def make_row(
    arm: str,
    runs: Sequence[Path],
    overrides: Mapping[str, Any],
    *,
    experiment: str,
    config: str,
    common: str = "",
    against: str = "",
    others: Sequence[Path] = (),
    logs: str = "",
    remarks: str = "",
) -> dict[str, str]:
    """The row of an arm.

    Args:
      arm: its name.
      runs: finished run directories, or their logs, that differ in their seed alone.
      overrides: that make the arm.
      experiment: name among the table's experiments.
      config: path of the experiment file, with its argument.
      common: what the command line added for all arms.
      against: the arm that it is held against; "" for none.
      others: the runs of that one.
      logs: where the logs are, below experiments/results.
      remarks: what a reader must know beside the numbers.

    Raises:
      ResultError: runs without a test result, or that differ otherwise.
    """
    summaries = [rundir.read_json(run / "summary.json") for run in runs]
    configs = [rundir.read_json(run / "config.json") for run in runs]
    facts = [rundir.read_json(run / "quantization.json") or {} for run in runs]
    for run, summary in zip(runs, summaries, strict=True):
        if "test" not in summary:
            raise ResultError(f"{run} has no test metrics; its data set needs a test split.")
    examples = one("test size", [s["test"]["examples"] for s in summaries])
    top1 = [s["test"]["top1"] for s in summaries]
    mean, low, high = sum(top1) / len(top1), *stats.wilson(round(top1[0] * examples), examples)
    if len(top1) > 1:
        interval = stats.mean_interval(top1)
        mean, low, high = interval.mean, interval.low, interval.high
    seconds = sum(s["wall_seconds"] for s in summaries) / len(summaries)
    versions = results.versions(one("versions", [s["versions"] for s in summaries]))
    changes = {key: value for key, value in overrides.items()}
    size = facts[0]
    difference = _difference(runs, others) if against else None
    interval_known = difference is not None and difference.n > 1
    return {
        "experiment": experiment,
        "arm": arm,
        "config": config,
        "overrides": " ".join(filter(None, [common, json.dumps(changes) if changes else ""])),
        "split": "test",
        "examples": str(examples),
        "top1": f"{100 * mean:.2f}",
        "low": f"{100 * low:.2f}",
        "high": f"{100 * high:.2f}",
        "interval": SEEDS if len(top1) > 1 else PICTURES,
        "seeds": " ".join(str(c["seed"]) for c in configs),
        "against": against,
        "difference": f"{difference.mean:+.2f}" if difference else "",
        "difference_low": f"{difference.low:+.2f}" if difference and interval_known else "",
        "difference_high": f"{difference.high:+.2f}" if difference and interval_known else "",
        "epochs": f"{configs[0]['train']['num_epochs']:g}",
        "train_examples": str(summaries[0]["examples"]["train"]),
        "mean_bits": f"{size['mean_bits']:.3g}" if size else "32",
        "weight_bytes": f"{size['weight_bytes']:.0f}" if size else str(4 * summaries[0]["params"]),
        "seconds_mean": f"{seconds:.0f}",
        "device": one("device", [s["device"] for s in summaries]),
        "processor": one("processor", [s["processor"] for s in summaries]),
        "versions": versions,
        "commit": one("commit", [s["commit"] for s in summaries]),
        "logs": logs,
        "remarks": remarks,
    }


def _difference(runs: Sequence[Path], others: Sequence[Path]) -> stats.Interval:
    """Points of top-1 that runs are above others, over the seeds that both have."""

    def by_seed(paths: Sequence[Path]) -> dict[int, float]:
        found = {}
        for path in paths:
            seed = (rundir.read_json(path / "config.json") or {})["seed"]
            found[seed] = 100 * (rundir.read_json(path / "summary.json") or {})["test"]["top1"]
        return found

    try:
        return stats.paired_difference(by_seed(runs), by_seed(others))
    except ValueError as error:
        raise ResultError(str(error)) from error


def add(
    results_dir: Path,
    table: str,
    experiment: str,
    directory: Path,
    arms: Mapping[str, Mapping[str, Any]],
    *,
    config: str,
    against: Mapping[str, str] | None = None,
    common: str = "",
    remarks: str = "",
) -> list[dict[str, str]]:
    """Copies a sweep's logs and replaces the rows of the experiment.

    Args:
      results_dir: the experiments/results directory.
      table: the CSV's name without ending.
      experiment: name of these rows: letters, digits, ".", "_" and "-", as it names a folder too.
      directory: of the sweep.
      arms: name -> what it overrides, in the order of the rows.
      config, common, remarks: as `make_row`.
      against: arm -> the arm that it is held against.

    Raises:
      ResultError: as `find_runs` and `make_row`, or a name with other characters.
    """
    results.check_name("The experiment's name", experiment)
    runs = find_runs(directory / "points", arms)
    logs = f"logs/{table}/{experiment}"
    against = against or {}
    unknown = [name for pair in against.items() for name in pair if name not in arms]
    if unknown:
        raise ResultError(f"against() names the arm {unknown[0]!r}; arms are {', '.join(arms)}.")
    made = [
        make_row(
            arm,
            runs[arm],
            arms[arm],
            experiment=experiment,
            config=config,
            common=common,
            against=against.get(arm, ""),
            others=runs[against[arm]] if arm in against else (),
            logs=logs,
            remarks=remarks,
        )
        for arm in arms
    ]
    target = results_dir / logs
    shutil.rmtree(target, ignore_errors=True)
    for run in (run for paths in runs.values() for run in paths):
        files = [file for file in LOGGED if (run / file).exists()]
        results.copy_logs(run, target / run.name, files)
    table_rows.replace(results_dir / f"{table}.csv", FIELDS, made, by="experiment")
    return made


def markdown(rows: Sequence[Row]) -> str:
    """README tables of committed rows: one an experiment."""
    parts = []
    for experiment in dict.fromkeys(row["experiment"] for row in rows):
        mine = [row for row in rows if row["experiment"] == experiment]
        first = mine[0]

        def several(field: str, mine: Sequence[Row] = mine) -> str:
            return ", ".join(dict.fromkeys(row[field] for row in mine))

        compared = any(row["against"] for row in mine)
        remarks = f" {first['remarks']}." if first["remarks"] else ""
        lines = [
            f"`{first['config']}`, logs in [`{first['logs']}`](experiments/results/"
            f"{first['logs']}): {several('split')} split, {several('examples')} images; "
            f"{several('processor')} ({several('device')}), commit {several('commit')}.{remarks}",
            "",
            "| arm | top-1 % [95 % interval] | interval of | "
            + ("difference, points | " if compared else "")
            + "bits a weight | kernels, kB | epochs | a run |",
            "|---" * (8 if compared else 7) + "|",
        ]
        for row in mine:
            seeds = len(row["seeds"].split())
            of = f"{seeds} seeds" if row["interval"] == SEEDS else "pictures"
            lines.append(
                f"| {row['arm']} | {row['top1']} [{row['low']}, {row['high']}] | {of} | "
                + (f"{_compared(row)} | " if compared else "")
                + f"{row['mean_bits']} | {float(row['weight_bytes']) / 1e3:,.0f} | "
                f"{row['epochs']} | {results.duration(float(row['seconds_mean']))} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _compared(row: Row) -> str:
    """Cell of a table: how far an arm is from another, and whether seeds alone could say so."""
    if not row["against"]:
        return "–"
    if not row["difference_low"]:
        return f"{row['difference']} than {row['against']}"
    low, high = float(row["difference_low"]), float(row["difference_high"])
    verdict = "better" if low > 0 else "worse" if high < 0 else "inconclusive"
    return f"{row['difference']} [{low:+.2f}, {high:+.2f}] than {row['against']}: **{verdict}**"
