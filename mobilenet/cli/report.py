"""Turns finished runs into committed results, and results into the README's tables.

    mobilenet report --table=baselines --row=digits --config_file=experiments/baselines/digits.py \
        runs/digits_s0 runs/digits_s1 runs/digits_s2
    mobilenet report --benchmark=runs/benchmark    # what `mobilenet benchmark` measured
    mobilenet report --claims=runs/reproduce --scale=cifar     # what `mobilenet reproduce` trained
    mobilenet report --comparison=runs/networks --scale=cpu \
        --config_file=experiments/comparison/architectures.py:cifar # what `mobilenet compare` shows
    mobilenet report --variants=runs/bits --table=quantization --row=bits \
        --config_file=experiments/quantization/bits.py:cifar       # a sweep of named variants
    mobilenet report --sensitivity=runs/w8a8 --row=cifar  # of `quantize --sensitivity`
    mobilenet report --exports=runs/files --row=cifar   # a folder of `export --verify`
    mobilenet report --evaluation=runs/int8/evaluation_test_HASH.json --row=int8  # of `convert`
    mobilenet report                # the README's tables again, from the rows
"""

import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from mobilenet import experiment, rundir
from mobilenet.cli import common
from mobilenet.report import (
    benchmarks,
    claims,
    comparison,
    deployments,
    pretrained,
    results,
    rows,
    variants,
)

# Who makes the README's table of a results file; experiments' rows are the usual ones.
TABLES: dict[str, Callable[..., str]] = {
    "benchmark": benchmarks.markdown,
    claims.TABLE: claims.markdown,
    comparison.TABLE: comparison.markdown,
    **{name: functools.partial(variants.markdown, name) for name in variants.TABLES},
    deployments.EXECUTOR: deployments.executor_markdown,
    deployments.EXPORTS: deployments.exports_markdown,
    pretrained.ACCURACY: pretrained.accuracy_markdown,
    pretrained.PARITY: pretrained.parity_markdown,
}


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    flags.DEFINE_string("root", ".", "the checkout", flag_values=values)
    flags.DEFINE_string("benchmark", "", "directory of a benchmark to commit", flag_values=values)
    flags.DEFINE_string("claims", "", "directory of the reproduction", flag_values=values)
    flags.DEFINE_string("comparison", "", "directory of compared networks", flag_values=values)
    flags.DEFINE_string(
        "variants", "", "directory of a sweep of named variants", flag_values=values
    )
    flags.DEFINE_string(
        "sensitivity", "", "run whose layers were rounded alone, to commit", flag_values=values
    )
    flags.DEFINE_string("exports", "", "directory of verified exports", flag_values=values)
    flags.DEFINE_string(
        "scale", "cifar", "of the claims' or the comparison's runs to commit", flag_values=values
    )
    flags.DEFINE_string("evaluation", "", "of converted weights, to commit", flag_values=values)
    flags.DEFINE_string("table", "", "results file to add a row to", flag_values=values)
    flags.DEFINE_string("row", "", "name of the row", flag_values=values)
    flags.DEFINE_string("config_file", "", "experiment file of the runs", flag_values=values)
    flags.DEFINE_string("overrides", "", "what its command line added", flag_values=values)
    flags.DEFINE_string("published_top1", "", "the published figure, percent", flag_values=values)
    flags.DEFINE_string("published_source", "", "where it stands", flag_values=values)
    flags.DEFINE_string("remarks", "", "what a reader must know beside it", flag_values=values)


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb."""
    if overrides:
        raise common.UsageError("report takes no --config overrides; use --overrides=TEXT.")
    root = Path(common.flag(values, "root"))
    directory = root / "experiments" / "results"
    if not directory.is_dir():
        raise common.UsageError(f"{directory} does not exist; run in the checkout or give --root.")
    try:
        if rest:
            row = results.add(
                directory,
                common.require(values, "table", "baselines"),
                common.require(values, "row", "digits"),
                [Path(run) for run in rest],
                config=common.require(values, "config_file", "experiments/baselines/digits.py"),
                overrides=common.flag(values, "overrides"),
                published_top1=common.flag(values, "published_top1"),
                published_source=common.flag(values, "published_source"),
                remarks=common.flag(values, "remarks"),
            )
            print(f"{row['row']}: top-1 {row['top1_mean']} % over seeds {row['seeds']}")
        if common.flag(values, "evaluation"):
            made = pretrained.make_row(
                common.require(values, "row", "int8"),
                Path(common.flag(values, "evaluation")),
                published_top1=common.flag(values, "published_top1"),
                published_source=common.flag(values, "published_source"),
                remarks=common.flag(values, "remarks"),
            )
            pretrained.add(directory, made)
            print(f"{made['row']}: top-1 {made['top1']} % of {made['examples']} pictures")
        if common.flag(values, "claims"):
            from mobilenet.report import reproduction  # with JAX, which tables need not wait for

            scale = common.flag(values, "scale")
            runs = Path(common.flag(values, "claims")) / scale
            reproduction.add(root, runs, scale, common.flag(values, "remarks"))
        if common.flag(values, "comparison"):
            compared = comparison.add(
                directory,
                Path(common.flag(values, "comparison")),
                scale=common.flag(values, "scale"),
                config=common.require(
                    values, "config_file", "experiments/comparison/architectures.py:cifar"
                ),
                remarks=common.flag(values, "remarks"),
            )
            print(f"{len(compared)} networks compared at scale {common.flag(values, 'scale')}")
        if common.flag(values, "exports"):
            exported = deployments.add(
                directory,
                common.require(values, "row", "cifar"),
                Path(common.flag(values, "exports")),
                remarks=common.flag(values, "remarks"),
            )
            print(f"{len(exported)} rows of exported files")
        if common.flag(values, "sensitivity"):
            print(_add_sensitivity(values, directory))
        if common.flag(values, "variants"):
            print(_add_variants(values, directory))
        if common.flag(values, "benchmark"):
            measured = Path(common.flag(values, "benchmark")) / "benchmark.csv"
            shutil.copyfile(measured, directory / "benchmark.csv")
            benchmarks.plot(rows.read(measured), directory / "figures" / "benchmark.svg")
        tables = {
            path.stem: TABLES.get(path.stem, results.markdown)(rows.read(path))
            for path in sorted(directory.glob("*.csv"))
        }
        readme = root / "README.md"
        readme.write_text(results.render(readme.read_text(), tables))
    except FileNotFoundError as error:
        raise common.UsageError(common.explain(error)) from error
    print(f"README tables: {', '.join(tables)}")
    return 0


def _add_variants(values: flags.FlagValues, directory: Path) -> str:
    file = common.require(values, "config_file", "experiments/quantization/bits.py:cifar")
    table = common.require(values, "table", "quantization")
    if table not in variants.TABLES:
        raise common.UsageError(
            f"--table is {table!r}; with --variants it is one of {', '.join(variants.TABLES)}."
        )
    module, scale = experiment.load_module(file), file.partition(":")[2]
    named = getattr(module, "variants", None)
    if named is None:
        raise common.UsageError(f"{file} has no variants(arg), which --variants needs.")
    sweep = Path(common.flag(values, "variants"))
    if table == "compression":
        _describe(sweep, named(scale))
    made = variants.add(
        directory,
        table,
        common.require(values, "row", "bits"),
        sweep,
        named(scale),
        config=file,
        baselines=module.baselines(scale) if hasattr(module, "baselines") else {},
        common=common.flag(values, "overrides"),
        remarks=common.flag(values, "remarks"),
    )
    return f"{len(made)} variants of {file}"


def _add_sensitivity(values: flags.FlagValues, directory: Path) -> str:
    import pandas as pd

    from mobilenet.analysis import plots

    run, row = Path(common.flag(values, "sensitivity")), common.require(values, "row", "cifar")
    results.check_name("The row's name", row)
    found = sorted(run.glob("sensitivity_*.csv"))
    if not found:
        raise common.UsageError(
            f"{run} has no sensitivity_*.csv; `mobilenet quantize --sensitivity` makes them."
        )
    target = directory / "logs" / "sensitivity" / row
    shutil.rmtree(target, ignore_errors=True)
    results.copy_logs(run, target, ["config.json", "summary.json", *(path.name for path in found)])
    for path in found:
        figure = directory / "figures" / f"{path.stem}_{row}.svg"
        plots.save(plots.sensitivity(pd.read_csv(path)), figure)
    return f"{len(found)} tables of {run}"


def _describe(sweep: Path, named: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes beside every run what is left of its network, and how fast it was measured to be."""
    from mobilenet import compression  # with JAX, which tables need not wait for

    # Of `mobilenet compare`: the first run of each network stands for it.
    speeds = {Path(row["run"]).name: row for row in comparison.read(sweep / "comparison.csv")}
    for run in (
        run for runs in variants.find_runs(sweep / "points", named).values() for run in runs
    ):
        found = compression.describe_run(run)
        speed = speeds.get(run.name, {})
        found["speed"] = {name: speed[name] for name in variants.SPEEDS if speed.get(name)}
        rundir.write_json(run / variants.FACTS["compression"], found)
