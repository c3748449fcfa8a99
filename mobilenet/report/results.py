"""Committed results: rows made from finished runs, and their logs next to them.

    experiments/results/NAME.csv            one row for each experiment, mean over its seeds
    experiments/results/logs/NAME/ROW/      config, summary and metrics of every seed

Nothing is typed into a table: `add` makes a row from run directories, `mobilenet.report.pages`
makes pages from rows, and tests make both again from the logs.
"""

import json
import math
import re
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilenet import identity, rundir
from mobilenet.analysis.runs import processor
from mobilenet.report.table import Table

FIELDS = (
    "row",
    "config",
    "overrides",
    "split",
    "top1_mean",
    "top1_std",
    "seeds",
    "published_top1",
    "published_source",
    "params",
    "macs",
    "train_examples",
    "epochs",
    "seconds_mean",
    "first_step_seconds_max",
    "device",
    "processor",
    "versions",
    "commit",
    "logs",
    "remarks",
)
# Tables with a row for each experiment, over its seeds.
TABLES = {name: Table(name, FIELDS, by="row", page=name) for name in ("baselines", "transfer")}
LOGGED = ("config.json", "summary.json", "metrics.jsonl", "data.json")


class ResultError(ValueError):
    """Runs that do not make a row; the message says which and why."""


def one(name: str, values: Sequence[Any]) -> Any:
    """What all values are; ResultError, naming them, if they differ."""
    if len({json.dumps(v, sort_keys=True) for v in values}) > 1:
        raise ResultError(f"The runs differ in {name}: {', '.join(map(str, values))}.")
    return values[0]


def differing(runs: Sequence[Path]) -> dict[str, list[Any]]:
    """Configuration keys in which runs compute something else: key -> the value of each run."""
    found = [identity.computed(run) for run in runs]
    values = {key: [each.get(key) for each in found] for key in found[0]}
    return {key: mine for key, mine in values.items() if any(v != mine[0] for v in mine)}


def versions(found: Mapping[str, str]) -> str:
    """Versions as rows state them: "flax=0.12.8 jax=0.10.2"."""
    return " ".join(f"{name}={version}" for name, version in found.items())


def duration(seconds: float) -> str:
    """A training time for a table: seconds below ten minutes, else minutes."""
    return f"{seconds:.0f} s" if seconds < 600 else f"{math.ceil(seconds / 60)} min"


def make_row(
    name: str,
    runs: Sequence[Path],
    *,
    config: str,
    overrides: str = "",
    published_top1: str = "",
    published_source: str = "",
    remarks: str = "",
    logs: str = "",
) -> dict[str, str]:
    """One row from finished runs that differ in their seed alone.

    Args:
      name: of the row.
      runs: run directories, or their committed logs.
      config: path of the experiment file; overrides: what was added on the command line.
      published_top1, published_source: the figure to compare with, in percent, and where it stands.
      remarks: what a reader must know next to the numbers.
      logs: where the logs are, below experiments/results.

    Raises:
      ResultError: a run that is not done, a seed twice, or runs that differ otherwise.
    """
    for run in runs:
        if rundir.status(run) != "done":
            raise ResultError(f"{run} is {rundir.status(run)}, not done; finish it first.")
    summaries = [read_summary(run) for run in runs]
    configs = [read_config(run) for run in runs]
    seeds = [summary["seed"] for summary in summaries]
    if len(set(seeds)) < len(seeds):
        raise ResultError(f"The runs repeat a seed: {', '.join(map(str, seeds))}.")
    for key, values in differing(runs).items():
        if key != "seed":
            one(key, values)
    scores = [100 * summary["test"]["top1"] for summary in summaries]
    return {
        "row": name,
        "config": config,
        "overrides": overrides,
        "split": f"test, {one('test size', [s['test']['examples'] for s in summaries])} images",
        "top1_mean": f"{statistics.fmean(scores):.2f}",
        "top1_std": f"{statistics.stdev(scores):.2f}" if len(scores) > 1 else "",
        "seeds": " ".join(map(str, seeds)),
        "published_top1": published_top1,
        "published_source": published_source,
        "params": str(one("parameters", [s["params"] for s in summaries])),
        "macs": str(one("MACs", [s["macs"] for s in summaries])),
        "train_examples": str(summaries[0]["examples"]["train"]),
        "epochs": f"{configs[0]['train']['num_epochs']:g}",
        "seconds_mean": f"{statistics.fmean(s['wall_seconds'] for s in summaries):.0f}",
        "first_step_seconds_max": f"{max(s['first_step_seconds'] for s in summaries):.1f}",
        "device": one("device", [s["device"] for s in summaries]),
        "processor": one("processor", list(map(processor, summaries))),
        "versions": versions(one("versions", [s["versions"] for s in summaries])),
        "commit": one("commit", [s["commit"] for s in summaries]),
        "logs": logs,
        "remarks": remarks,
    }


# What every result row says of a run.
NUMBERS = (
    *("test.top1", "test.examples", "params", "macs", "examples.train"),
    *("wall_seconds", "first_step_seconds"),
)
SUMMARIZED = (*NUMBERS, "seed", "device", "processor", "versions", "commit")


def read_summary(run: Path, keys: Sequence[str] = SUMMARIZED) -> dict[str, Any]:
    """The summary of a finished run with these keys; ResultError if it is not a whole one."""
    path = run / "summary.json"
    try:
        summary = rundir.read_object(path, *keys)
    except rundir.RunDirectoryError as error:
        raise ResultError(str(error)) from error
    for key in (key for key in keys if key in NUMBERS):
        value: Any = summary
        for name in key.split("."):
            value = value[name]
        if not isinstance(value, int | float):
            raise ResultError(f"{path} is damaged: {key} is {value!r}, which is no number.")
    return summary


def read_config(run: Path) -> dict[str, Any]:
    """The configuration of a finished run as it was written; ResultError if it is not whole."""
    try:
        keys = ("seed", "data.data_dir", "train.num_epochs")
        return rundir.read_object(run / "config.json", *keys)
    except rundir.RunDirectoryError as error:
        raise ResultError(str(error)) from error


def check_name(what: str, name: str) -> None:
    """Refuses, with a ResultError, a name that cannot name a folder of logs."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ResultError(f"{what} is {name!r}; use letters, digits, dots, dashes and underscores.")


def copy_logs(run: Path, target: Path, files: Sequence[str]) -> None:
    """Copies files of a run to a new directory, without the path of its data.

    Args:
      run: the run directory.
      target: is made; its content must not be there yet.
      files: names in the run directory; identity.json, which older runs lack, goes with them.

    Raises:
      FileNotFoundError: one of the files does not exist.
    """
    target.mkdir(parents=True)
    known = [file for file in (identity.IDENTITY_FILE,) if (run / file).exists()]
    for file in (*files, *known):
        shutil.copyfile(run / file, target / file)
    # Where the data lay on the machine of the run is nobody's concern.
    path = target / "config.json"
    if path.exists():
        config = read_config(target)
        config["data"]["data_dir"] = ""
        rundir.write_json(path, config)


def replace_logs(target: Path, runs: Mapping[str, Path], files: Sequence[str]) -> None:
    """Replaces a folder of logs by those of runs.

    Args:
      target: the folder, below experiments/results/logs.
      runs: name of a run in the folder -> run directory.
      files: names of the files to copy, as far as a run has them.
    """
    shutil.rmtree(target, ignore_errors=True)
    for name, run in runs.items():
        copy_logs(run, target / name, [file for file in files if (run / file).exists()])


def add(
    directory: Path, table: str, name: str, runs: Sequence[Path], **notes: str
) -> dict[str, str]:
    """Copies the runs' logs next to the table and puts their row in it, replacing one of its name.

    Args:
      directory: experiments/results.
      table: name of one of TABLES.
      name: of the row: letters, digits, ".", "_" and "-", since it names a folder too.
      runs: finished run directories.
      **notes: `config`, `overrides`, `published_top1`, `published_source`, `remarks` of `make_row`.

    Raises:
      ResultError: a name with other characters, or runs that `make_row` refuses.
    """
    check_name("The row's name", name)
    relative = f"logs/{table}/{name}"
    row = make_row(name, runs, logs=relative, config=notes.pop("config"), **notes)
    named = {f"seed{seed}": run for run, seed in zip(runs, row["seeds"].split(), strict=True)}
    replace_logs(directory / relative, named, LOGGED)
    TABLES[table].add(directory, [row])
    return row
