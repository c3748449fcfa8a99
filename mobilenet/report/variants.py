"""Committed results of experiments whose file names its variants: one row for each variant.

experiments/results/TABLE.csv
experiments/results/logs/TABLE/EXPERIMENT/KEY/     config, summary, metrics of every run
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mobilenet import config as config_lib
from mobilenet import identity, rundir
from mobilenet.analysis import plots, stats
from mobilenet.analysis.runs import processor
from mobilenet.report import results
from mobilenet.report.results import ResultError, one
from mobilenet.report.table import Table

DIFFERENCE = ("difference", "difference_low", "difference_high")
# Of the rows of every table; what else a row says is in `TABLES`.
FIELDS = (
    "experiment",
    "variant",
    "config",
    "overrides",
    "split",
    "examples",
    "top1",
    "low",
    "high",
    "interval",
    "seeds",
    "baseline",
    *DIFFERENCE,
    "epochs",
    "train_examples",
    "seconds_mean",
    "device",
    "processor",
    "versions",
    "commit",
    "logs",
    "remarks",
)
# What an interval speaks of: other seeds, or, of a single run, other images.
SEEDS, IMAGES = "t over seeds", "Wilson over images"
# What a run's verbs leave next to its log, by the table that reads it.
FACTS = {"quantization": "quantization.json", "compression": "compression.json"}
LOGGED = (*results.LOGGED, "point.json", *FACTS.values())

BYTES = ("dense", "gzip", "sparse", "sparse_gzip")  # of `mobilenet.compress.size.sizes`
SPEEDS = ("latency_ms", "images_per_second", "batch_size")
BUDGETS = ("macs", f"{BYTES[-1]}_bytes", "latency_ms")  # what a figure shows accuracy against

Row = Mapping[str, str]


def _size(found: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> dict[str, str]:
    first = found[0]
    return {
        "mean_bits": f"{first['mean_bits']:.3g}" if first else "32",
        "weight_bytes": f"{first['weight_bytes']:.0f}" if first else str(4 * summary["params"]),
    }


def _left(found: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> dict[str, str]:
    del summary
    if not all(found):
        raise ResultError(
            "A run has no compression.json; `mobilenet report compression` writes it."
        )

    def mean(*keys: str) -> float:
        values: list[Any] = list(found)
        for key in keys:
            values = [value[key] for value in values]
        return sum(values) / len(values)

    speed = next((each["speed"] for each in found if each.get("speed")), {})
    return {
        "sparsity": f"{100 * mean('sparsity', 'prunable'):.2f}",
        "params": f"{mean('params'):.0f}",
        "macs": f"{mean('macs'):.0f}",
        "nonzero_params": f"{mean('nonzero_params'):.0f}",
        "nonzero_macs": f"{mean('nonzero_macs'):.0f}",
        **{f"{name}_bytes": f"{mean('bytes', name):.0f}" for name in BYTES},
        **{name: str(speed.get(name, "")) for name in SPEEDS},
    }


def _scale(row: Row) -> str:
    return row["config"].partition(":")[2] or "full"


def draw_budgets(rows: Sequence[Row]) -> Figure:
    """Accuracy and cost of compressed networks, next to dense ones.

    Args:
      rows: of the compression table, whose runs learned from the same images.
    """
    most = max(int(row["macs"]) for row in rows)
    table = []
    for row in rows:
        kind = "dense"
        if float(row["sparsity"]) >= 1:
            after = '"pretrained"' in row["overrides"]
            kind = f"zeros, {'after' if after else 'in'} training"
        elif '"pretrained"' in row["overrides"] and int(row["macs"]) < most:
            kind = "fewer channels"
        taught = "distillation.teacher" in row["overrides"]
        percent = {name: float(row[name]) / 100 for name in ("top1", "low", "high")}
        table.append(
            {
                "kind": f"{kind}, taught" if taught else kind,
                "label": row["variant"].split(", ")[0] if kind.startswith("zeros") else "",
                "mean": percent.pop("top1"),
                **percent,
                **{cost: float(row[cost] or "nan") for cost in BUDGETS},
            }
        )
    table.sort(key=lambda point: (point["kind"] != "dense", point["kind"]))
    first = rows[0]
    title = (
        f"Compressed networks and dense ones, {plots.data_set(_scale(first))}: "
        f"{int(first['train_examples']):,} training images, {len(first['seeds'].split())} seeds"
    )
    return plots.budgets(
        pd.DataFrame(table), BUDGETS, named=BUDGETS[1:2], front="dense", title=title
    )


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the rows of one results file say besides `FIELDS`.

    Attributes:
      table: the file.
      facts: (facts of the runs, their first summary) -> its own columns.
      draw: rows of the same data -> the figure of the page.
    """

    table: Table
    facts: Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], dict[str, str]]
    draw: Callable[[Sequence[Row]], Figure] | None = None


def _kind(name: str, fields: tuple[str, ...], *rest: Any) -> Kind:
    return Kind(Table(name, (*FIELDS, *fields), by="experiment", page=name), *rest)


TABLES = {
    "quantization": _kind("quantization", ("mean_bits", "weight_bytes"), _size),
    "compression": _kind(
        "compression",
        (
            *("sparsity", "params", "macs", "nonzero_params", "nonzero_macs"),
            *(f"{name}_bytes" for name in BYTES),
            *SPEEDS,
        ),
        _left,
        draw_budgets,
    ),
}


def find_runs(directory: Path, variants: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Path]]:
    """Variant -> its run directories by seed.

    Args:
      directory: whose sub-directories are the runs of a sweep, with `point.json`.
      variants: name -> what it overrides, besides the seed.

    Raises:
      ResultError: a variant without a run, with two of one seed, or with one that is not done; runs
        that differ in more than their variants say.
    """
    by_overrides: dict[str, list[Path]] = {}
    seeds: set[int] = set()
    for path in sorted(directory.glob("*/point.json")):
        try:
            overrides = {"seed": 0, **rundir.read_object(path, "overrides")["overrides"]}
        except (rundir.RunDirectoryError, TypeError) as error:
            raise ResultError(f"{path} is no point of a sweep: {error}") from error
        seeds.add(overrides["seed"])
        by_overrides.setdefault(_canonical(overrides), []).append(path.parent)
    found = {}
    for name, overrides in variants.items():
        wanted = [_canonical({**overrides, "seed": seed}) for seed in sorted(seeds)]
        candidates = [by_overrides[each] for each in wanted if each in by_overrides]
        if not candidates:
            raise ResultError(
                f"{directory} has no run of the variant {name!r}; finish the sweep first."
            )
        for several in candidates:
            if len(several) > 1:
                raise ResultError(
                    f"The variant {name!r} has two runs of one seed, {several[0]} and "
                    f"{several[1]}, {_differing(several[:2])}; keep the sweeps in directories "
                    "of their own."
                )
        runs = [run for (run,) in candidates]
        for run in runs:
            if rundir.status(run) != "done":
                raise ResultError(f"{run} is {rundir.status(run)}, not done; finish it first.")
        found[name] = runs
    _check_one_experiment(found, variants)
    return found


def _differing(runs: Sequence[Path]) -> str:
    keys = [key for key in results.differing(runs) if key != "seed"]
    return f"which differ in {', '.join(keys)}" if keys else "which compute the same"


def _check_one_experiment(
    found: Mapping[str, Sequence[Path]], variants: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuses runs of several sweeps: they differ in a key that their variants leave alone."""
    first: dict[str, tuple[Any, Path]] = {}
    for name, runs in found.items():
        own = {"seed", *variants[name]}
        if any(key.startswith("data.") for key in own):
            own.add("examples")
        if "pretrained" in own:  # and what comes with the weights
            own |= {*config_lib.INHERITED, *config_lib.INHERITED_STRIDES, "data.normalization"}
        for run in runs:
            for key, value in identity.computed(run).items():
                if key in own:
                    continue
                known, other = first.setdefault(key, (value, run))
                if known != value:
                    raise ResultError(
                        f"{other} and {run} differ in {key} ({known!r}, {value!r}), which their "
                        "variants leave alone: they are not of one sweep. Keep the sweeps in "
                        "directories of their own."
                    )


def _table_facts(
    table: str, runs: Sequence[Path], facts: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> dict[str, str]:
    try:
        return TABLES[table].facts(facts, summary)
    except (KeyError, TypeError) as error:
        raise ResultError(
            f"{FACTS[table]} of {runs[0]} or of another seed is not what a run writes: {error}."
        ) from error


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        return rundir.read_json(path, dict) or {}
    except rundir.RunDirectoryError as error:
        raise ResultError(str(error)) from error


def _canonical(overrides: Mapping[str, Any]) -> str:
    return json.dumps(overrides, sort_keys=True)


def make_row(
    variant: str,
    runs: Sequence[Path],
    overrides: Mapping[str, Any],
    *,
    table: str,
    experiment: str,
    config: str,
    common: str = "",
    baseline: str = "",
    others: Sequence[Path] = (),
    logs: str = "",
    remarks: str = "",
) -> dict[str, str]:
    """The row of a variant.

    Args:
      variant: its name.
      runs: finished run directories, or their logs, that differ in their seed alone.
      overrides: that make the variant.
      table: one of TABLES.
      experiment: name among the table's experiments.
      config: path of the experiment file, with its argument.
      common: what the command line added for all variants.
      baseline: the variant that it is compared with; "" for none.
      others: the runs of that one.
      logs: where the logs are, below experiments/results.
      remarks: what a reader must know next to the numbers.

    Raises:
      ResultError: runs without a test result, or that differ otherwise.
    """
    for run in runs:
        if "test" not in results.read_summary(run, ()):
            raise ResultError(f"{run} has no test metrics; its data set needs a test split.")
    keys = [key for key in results.SUMMARIZED if key not in ("seed", "first_step_seconds")]
    summaries = [results.read_summary(run, keys) for run in runs]
    configs = [results.read_config(run) for run in runs]
    facts = [_read_facts(run / FACTS[table]) for run in runs]
    examples = one("test size", [s["test"]["examples"] for s in summaries])
    top1 = [s["test"]["top1"] for s in summaries]
    mean, low, high = sum(top1) / len(top1), *stats.wilson(round(top1[0] * examples), examples)
    if len(top1) > 1:
        interval = stats.mean_interval(top1, within=stats.range_of("top1"))
        mean, low, high = interval.mean, interval.low, interval.high
    seconds = sum(s["wall_seconds"] for s in summaries) / len(summaries)
    versions = results.versions(one("versions", [s["versions"] for s in summaries]))
    changes = {key: value for key, value in overrides.items()}
    return {
        "experiment": experiment,
        "variant": variant,
        "config": config,
        "overrides": " ".join(filter(None, [common, json.dumps(changes) if changes else ""])),
        "split": "test",
        "examples": str(examples),
        "top1": f"{100 * mean:.2f}",
        "low": f"{100 * low:.2f}",
        "high": f"{100 * high:.2f}",
        "interval": SEEDS if len(top1) > 1 else IMAGES,
        "seeds": " ".join(str(c["seed"]) for c in configs),
        "baseline": baseline,
        **(_difference(runs, others) if baseline else dict.fromkeys(DIFFERENCE, "")),
        "epochs": f"{configs[0]['train']['num_epochs']:g}",
        "train_examples": str(summaries[0]["examples"]["train"]),
        **_table_facts(table, runs, facts, summaries[0]),
        "seconds_mean": f"{seconds:.0f}",
        "device": one("device", [s["device"] for s in summaries]),
        "processor": one("processor", list(map(processor, summaries))),
        "versions": versions,
        "commit": one("commit", [s["commit"] for s in summaries]),
        "logs": logs,
        "remarks": remarks,
    }


def _difference(runs: Sequence[Path], others: Sequence[Path]) -> dict[str, str]:
    """Points of top-1 that runs are above others, over the seeds that both have."""

    def by_seed(paths: Sequence[Path]) -> dict[int, float]:
        found = {}
        for path in paths:
            summary = results.read_summary(path, ["test.top1"])
            found[results.read_config(path)["seed"]] = 100 * summary["test"]["top1"]
        return found

    try:
        found = stats.paired_difference(by_seed(runs), by_seed(others), within=stats.POINTS)
    except ValueError as error:
        raise ResultError(str(error)) from error
    ends = (found.low, found.high) if found.n > 1 else ()
    texts = [f"{value:+.2f}" for value in (found.mean, *ends)]
    return dict(itertools.zip_longest(DIFFERENCE, texts, fillvalue=""))


def add(
    directory: Path,
    table: str,
    experiment: str,
    sweep: Path,
    variants: Mapping[str, Mapping[str, Any]],
    *,
    config: str,
    baselines: Mapping[str, str] | None = None,
    common: str = "",
    remarks: str = "",
) -> list[dict[str, str]]:
    """Copies a sweep's logs and replaces the rows of the experiment.

    Args:
      directory: experiments/results.
      table: the CSV's name without ending, one of TABLES.
      experiment: name of these rows: letters, digits, ".", "_" and "-", as it names a folder too.
      sweep: directory of the sweep.
      variants: name -> what it overrides, in the order of the rows.
      config, common, remarks: as `make_row`.
      baselines: variant -> the variant that it is compared with.

    Raises:
      ResultError: as `find_runs` and `make_row`, or a name with other characters.
    """
    results.check_name("The experiment's name", experiment)
    runs = find_runs(sweep / "points", variants)
    logs = f"logs/{table}/{experiment}"
    baselines = baselines or {}
    unknown = [name for pair in baselines.items() for name in pair if name not in variants]
    if unknown:
        raise ResultError(
            f"baselines() names the variant {unknown[0]!r}; variants are {', '.join(variants)}."
        )
    made = [
        make_row(
            variant,
            runs[variant],
            variants[variant],
            table=table,
            experiment=experiment,
            config=config,
            common=common,
            baseline=baselines.get(variant, ""),
            others=runs[baselines[variant]] if variant in baselines else (),
            logs=logs,
            remarks=remarks,
        )
        for variant in variants
    ]
    named = {run.name: run for paths in runs.values() for run in paths}
    results.replace_logs(directory / logs, named, LOGGED)
    kind = TABLES[table]
    kind.table.add(directory, made)
    if kind.draw:
        for name, rows in by_figure(table, kind.table.rows(directory)).items():
            plots.save(kind.draw(rows), directory / "figures" / name)
    return made


def by_figure(table: str, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """File name of a figure -> the rows it shows: those of one scale, which share their data."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(f"{table}_{_scale(row)}.svg", []).append(row)
    return found
