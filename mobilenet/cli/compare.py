"""How the variants of a sweep compare: accuracy, size, speed and training time.

    mobilenet sweep --config=experiments/comparison/architectures.py --workdir=runs/networks
    mobilenet compare --workdir=runs/networks                  # also WORKDIR/comparison.csv, .png
    mobilenet compare --workdir=runs/networks --measure=false  # without timing anything

Every finished run below WORKDIR is compared; runs that differ only in their seed are one variant.
The difference to the baseline that the experiment file names is paired by seed.

Speed is that of evaluation on this machine: each network runs in a process of its own, in
alternating rounds, with one image and with --batch_size images per step. What comparison.csv has
already is not measured again.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mobilenet.cli import common
from mobilenet.report import rows as table_rows

if TYPE_CHECKING:  # they import JAX, which flags need not wait for
    from mobilenet.report.comparison import Row

REQUIRED = ("workdir",)


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    flags.DEFINE_string("workdir", "", "directory of a sweep", flag_values=values)
    flags.DEFINE_boolean("measure", True, "time what has not been timed", flag_values=values)
    flags.DEFINE_integer("rounds", 7, "rounds of timing every network", flag_values=values)
    flags.DEFINE_integer("batch_size", 64, "images per step, for images/s", flag_values=values)


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb."""
    common.refuse_arguments(rest)
    if overrides:
        raise common.UsageError("compare takes no --config overrides; runs have their own.")
    workdir = Path(common.require(values, "workdir", "runs/networks"))
    common.require_at_least(values, rounds=1, batch_size=1)

    from mobilenet.analysis import plots
    from mobilenet.report import comparison, comparison_text, comparison_views

    path = workdir / f"{comparison.TABLE.name}.csv"
    found, known = comparison.load(workdir), comparison.read(path)
    rows = comparison.keep_speeds(found, known)
    there = {run for paths in found.runs.values() for run in paths}
    gone = [row["network"] for row in known if row["run"] not in there]
    notes = [*found.notes, *(f"in the earlier {path.name}, but without a run: {n}" for n in gone)]
    if common.flag(values, "measure"):
        rows = measure(
            workdir, rows, common.flag(values, "rounds"), common.flag(values, "batch_size")
        )
    table_rows.write(path, comparison.FIELDS, rows)
    plots.save(comparison_views.plot(rows), path.with_suffix(".png"))
    apart = comparison_text.differences(workdir, rows, found.runs)
    print(comparison_text.text(rows, notes, apart))
    print(f"results: {path}, .png")
    return 0


def measure(workdir: Path, rows: "Sequence[Row]", rounds: int, batch_size: int) -> "list[Row]":
    """The rows with the speeds that were missing; ResultError as `comparison_speeds.unmeasured`."""
    # This process has the device's name from JAX, and leaves its memory to those that measure.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    from mobilenet import build
    from mobilenet.benchmark import suite
    from mobilenet.report import comparison_speeds
    from mobilenet.rundir import read_config
    from mobilenet.train import records

    environment = records.environment()
    lacking = comparison_speeds.unmeasured(
        rows, batch_size, environment["device"], environment["processor"]
    )
    measured: dict[int, list] = {}
    for size in dict.fromkeys((1, batch_size)) if lacking else ():
        cases = []
        for row in lacking:
            run = workdir / row["run"]  # all seeds have one network
            config, stored = read_config(run), build.read_stored(run)
            classes = build.resolve_classes(config, len(stored["class_names"]) if stored else None)
            cases.append(
                suite.Case(row["network"], "evaluate", config, size, classes, model=row["network"])
            )
        print(f"timing, batch {size}: {', '.join(case.name for case in cases)}", flush=True)
        try:
            measured[size] = suite.measure_together(
                cases, rounds, environment, functools.partial(print, flush=True)
            )
        except suite.BenchmarkError as error:
            raise common.Failure(str(error)) from error
    speeds = {
        row["run"]: comparison_speeds.speed(single, many)
        for row, single, many in zip(
            lacking, measured.get(1, ()), measured.get(batch_size, ()), strict=True
        )
    }
    return [{**row, **speeds.get(row["run"], {})} for row in rows]
