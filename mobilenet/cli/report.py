"""Turns finished runs into committed rows, and rows into pages.

Without arguments it writes the pages of experiments/results and the README's table again, from the
rows. With a subject it first commits what runs say: their logs, and a row in the subject's CSV.

    mobilenet report        # the pages again
    mobilenet report baselines runs/digits_s0 runs/digits_s1 runs/digits_s2 --row=digits \
        --config=experiments/baselines/digits.py
    mobilenet report quantization runs/bits --row=bits \
        --config=experiments/quantization/bits.py:cifar
    mobilenet report ablations runs/reproduce --scale=cifar
    mobilenet report speed runs/benchmark

SUBJECT and RUNS are: "ablations" and the --workdir of `mobilenet reproduce`; "quantization" and the
directory of a sweep, or a run after `mobilenet quantize --sensitivity`, which needs --row alone;
"compression" and the directory of a sweep; "transfer" or "baselines" and runs of one configuration,
one for each seed; "comparison" and the --workdir of `mobilenet compare`; "speed" and the --workdir
of `mobilenet benchmark`; "exports" and the directory of `mobilenet export --verify`; "parity" and
the evaluation_*.json of a converted run.
"""

import difflib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from mobilenet import experiment, rundir
from mobilenet.cli import common

if TYPE_CHECKING:  # it imports pandas and Matplotlib, which flags need not wait for
    from mobilenet.report.subjects import Subject

ARGUMENTS = "[SUBJECT RUNS ...]"
OVERRIDES = ""  # --config names the runs' experiment; nothing is configured
# Flags of subjects -> an example.
FLAGS = {
    "row": "digits",
    "config": "experiments/baselines/digits.py",
    "scale": "cifar",
    "overrides": "--config.train.num_epochs=4",
    "published_top1": "92.88",
    "published_source": "README of its repository",
    "remarks": "two processes on one machine",
}


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    flags.DEFINE_string(
        "row",
        "",
        "name of the new row; required for quantization, compression, transfer, baselines, "
        "exports and parity",
        flag_values=values,
    )
    flags.DEFINE_string(
        "config",
        "",
        "experiment file of the runs; required for quantization, compression, transfer, baselines "
        "and comparison",
        flag_values=values,
    )
    flags.DEFINE_string(
        "scale",
        "",
        "name of the runs' scale; required for ablations and comparison",
        flag_values=values,
    )
    flags.DEFINE_string("overrides", "", "what the runs' command line added", flag_values=values)
    flags.DEFINE_string(
        "published_top1",
        "",
        "the published figure in percent, for transfer, baselines and parity",
        flag_values=values,
    )
    flags.DEFINE_string("published_source", "", "where it stands", flag_values=values)
    flags.DEFINE_string("remarks", "", "what a reader must know next to it", flag_values=values)
    flags.DEFINE_string("root", ".", "the checkout", flag_values=values)


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb."""
    if overrides:
        raise common.UsageError(
            "report changes no configuration; say what the runs had by --overrides=TEXT."
        )
    root = Path(common.flag(values, "root"))
    directory = root / "experiments" / "results"
    if not directory.is_dir():
        raise common.UsageError(f"{directory} does not exist; run in the checkout or give --root.")
    from mobilenet.report import subjects

    try:
        if rest:
            print(_commit(values, root, find(rest[0]), [Path(run) for run in rest[1:]]))
        else:
            check_flags(values, "report without a subject", (), ())
        written = subjects.write(root)
    except FileNotFoundError as error:
        raise common.UsageError(common.explain(error)) from error
    print(f"written: {', '.join(written)}")
    return 0


def find(name: str) -> "Subject":
    """The subject of a name; UsageError, with the nearest one, for another."""
    from mobilenet.report.subjects import SUBJECTS

    if name in SUBJECTS:
        return SUBJECTS[name]
    near = difflib.get_close_matches(name, SUBJECTS, 1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise common.UsageError(f"{name!r} is no subject; there are {', '.join(SUBJECTS)}.{guess}")


def check_flags(
    values: flags.FlagValues, what: str, required: Sequence[str], optional: Sequence[str]
) -> None:
    """Refuses flags that do not belong to what is reported, and missing ones."""
    taken = (*required, *optional)
    for name in FLAGS:
        if common.flag(values, name) and name not in taken:
            takes = " and ".join(f"--{each}" for each in taken) or "none of its own"
            raise common.UsageError(f"--{name} is no flag of {what}, which takes {takes}.")
    for name in required:
        common.require(values, name, FLAGS[name])


def _commit(values: flags.FlagValues, root: Path, subject: "Subject", runs: list[Path]) -> str:
    """Commits what runs say of a subject; what was done, in a line."""
    if not runs:
        raise common.UsageError(f"{subject.name} needs RUNS: {subject.runs}.")
    if len(runs) > 1 and not subject.several:
        raise common.UsageError(f"{subject.name} takes one of RUNS, {subject.runs}; not {runs[1]}.")
    directory = root / "experiments" / "results"
    if subject.name == "quantization" and list(runs[0].glob("sensitivity_*.csv")):
        check_flags(values, "the sensitivity of a run", ("row",), ())
        return _add_sensitivity(directory, common.flag(values, "row"), runs[0])
    check_flags(values, subject.name, subject.required, subject.optional)
    given = {name: common.flag(values, name) for name in FLAGS}
    notes = {name: given[name] for name in subject.optional}
    if subject.several:
        return _add_recipe(directory, subject.name, runs, given, notes)
    adds = {
        "ablations": lambda: _add_claims(root, runs[0], given),
        "quantization": lambda: _add_variants(directory, subject.name, runs[0], given),
        "compression": lambda: _add_variants(directory, subject.name, runs[0], given),
        "comparison": lambda: _add_comparison(directory, runs[0], given),
        "speed": lambda: _add_speed(directory, runs[0]),
        "exports": lambda: _add_exports(directory, runs[0], given),
        "parity": lambda: _add_evaluation(directory, runs[0], given["row"], notes),
    }
    return adds[subject.name]()


def _add_recipe(
    directory: Path,
    table: str,
    runs: Sequence[Path],
    given: Mapping[str, str],
    notes: Mapping[str, str],
) -> str:
    from mobilenet.report import results

    row = results.add(directory, table, given["row"], runs, config=given["config"], **notes)
    return f"{row['row']}: top-1 {row['top1_mean']} % over seeds {row['seeds']}"


def _add_claims(root: Path, workdir: Path, given: Mapping[str, str]) -> str:
    from mobilenet.report import reproduction  # with JAX, which pages need not wait for

    made = reproduction.add(root, workdir / given["scale"], given["scale"], given["remarks"])
    return f"{len(made)} rows of claims at scale {given['scale']}"


def _add_variants(directory: Path, table: str, sweep: Path, given: Mapping[str, str]) -> str:
    from mobilenet.report import variants

    file = given["config"]
    named = experiment.load_variants(file)
    if not named:
        raise common.UsageError(f"{file} has no variants(arg), which `report {table}` needs.")
    if table == "compression":
        _describe(sweep, named)
    made = variants.add(
        directory,
        table,
        given["row"],
        sweep,
        named,
        config=file,
        baselines=experiment.load_baselines(file),
        common=given["overrides"],
        remarks=given["remarks"],
    )
    return f"{len(made)} variants of {file}"


def _add_comparison(directory: Path, sweep: Path, given: Mapping[str, str]) -> str:
    from mobilenet.report import comparison

    made = comparison.add(
        directory, sweep, scale=given["scale"], config=given["config"], remarks=given["remarks"]
    )
    return f"{len(made)} networks compared at scale {given['scale']}"


def _add_speed(directory: Path, workdir: Path) -> str:
    from mobilenet.report import benchmarks, rows

    measured = rows.read(workdir / "benchmark.csv", benchmarks.TABLE.fields)
    if not measured:
        raise common.UsageError(
            f"{workdir} has no benchmark.csv with rows; `mobilenet benchmark` makes it."
        )
    benchmarks.TABLE.add(directory, measured)
    benchmarks.plot(measured, directory / "figures" / "benchmark.svg")
    return f"{len(measured)} rows of {workdir}"


def _add_exports(directory: Path, exported: Path, given: Mapping[str, str]) -> str:
    from mobilenet.report import deployments

    made = deployments.add(directory, given["row"], exported, remarks=given["remarks"])
    return f"{len(made)} rows of exported files"


def _add_evaluation(directory: Path, evaluation: Path, name: str, notes: Mapping[str, str]) -> str:
    from mobilenet.report import pretrained

    made = pretrained.make_row(name, evaluation, **notes)
    pretrained.ACCURACY.add(directory, [made])
    return f"{made['row']}: top-1 {made['top1']} % of {made['examples']} images"


def _add_sensitivity(directory: Path, row: str, run: Path) -> str:
    from mobilenet.analysis import plots
    from mobilenet.report import figures, results

    results.check_name("The row's name", row)
    found = sorted(run.glob("sensitivity_*.csv"))
    target = directory / "logs" / "sensitivity" / row
    shutil.rmtree(target, ignore_errors=True)
    results.copy_logs(run, target, ["config.json", "summary.json", *(path.name for path in found)])
    for path in found:
        figure = directory / "figures" / f"{path.stem}_{row}.svg"
        plots.save(figures.sensitivity(path), figure)
    return f"{len(found)} tables of {run}"


def _describe(sweep: Path, named: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes next to every run what is left of its network, and how fast it was measured to be."""
    from mobilenet import compression  # with JAX, which pages need not wait for
    from mobilenet.report import comparison, variants

    # Of `mobilenet compare`: the first run of each network stands for it.
    speeds = {Path(row["run"]).name: row for row in comparison.read(sweep / "comparison.csv")}
    runs = variants.find_runs(sweep / "points", named)
    for run in (run for paths in runs.values() for run in paths):
        found = compression.describe_run(run)
        speed = speeds.get(run.name, {})
        found["speed"] = {name: speed[name] for name in variants.SPEEDS if speed.get(name)}
        rundir.write_json(run / variants.FACTS["compression"], found)
