"""Trains every run of an experiment that is not done yet: its variants, each with several seeds.

    mobilenet sweep --config=experiments/ablations/expansion.py:cifar --workdir=runs/expansion
    mobilenet sweep ... --dry_run                 # the variants, their cost, and what is done
    mobilenet sweep ... --jobs=4                  # in four processes
    mobilenet sweep ... --lanes=8                 # eight runs of one shape in one program
    mobilenet sweep ... --retry_failed --max_failures=3
    mobilenet sweep ... --launcher=slurm --slurm=partition=gpu,gpus=1,time=600
    mobilenet sweep ... --search=tpe --trials=20 --seed=0      # for a sweep() with ranges

The same command continues after an interruption; runs that are done are never trained again. A run
is known by a hash of its configuration: a changed configuration is a new run. Overrides with
--config.KEY=VALUE change every run. The data is opened before anything is written.

It ends with a table: top-1 of each variant, as mean and 95 % t-interval over its seeds. The exit
code is 0 when every run is done; it is 1 while another command trains some of them.

A search draws a value for each range of the sweep (`mobilenet.sweep.space`), scores validation
top-1, and stops hopeless trials early. Several processes of one command share a search.

experiments/README.md says how to write an experiment file.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mobilenet.cli import common, following
from mobilenet.cli.main import DIVERGED, FAILED
from mobilenet.config import Config
from mobilenet.experiment import (
    load_baselines,
    load_config,
    load_sweep,
    load_variants,
    read_note,
)
from mobilenet.terminal import printable

if TYPE_CHECKING:  # they import JAX, which flags need not wait for
    from mobilenet.sweep.points import Point
    from mobilenet.sweep.runner import Outcome

REQUIRED = ("config", "workdir")
OVERRIDES = "set a key in every run"


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    flags.DEFINE_string(
        "config", "", "file.py or file.py:SCALE, with variants() or sweep()", flag_values=values
    )
    flags.DEFINE_string(
        "workdir", "", "directory of the sweep: a run directory for each run", flag_values=values
    )
    flags.DEFINE_boolean(
        "dry_run", False, "show the variants and their cost, train nothing", flag_values=values
    )
    flags.DEFINE_integer("jobs", 1, "processes that train", flag_values=values)
    flags.DEFINE_integer("lanes", 1, "runs of one shape in one program", flag_values=values)
    common.define_threads(values)
    flags.DEFINE_boolean(
        "retry_failed", False, "train runs again that failed before", flag_values=values
    )
    flags.DEFINE_integer(
        "max_failures", 0, "stop after so many failed runs; 0 is never", flag_values=values
    )
    flags.DEFINE_enum(
        "launcher", "local", ["local", "slurm"], "where the runs are trained", flag_values=values
    )
    flags.DEFINE_list(
        "slurm", [], "settings of the jobs, as KEY=VALUE: partition, time (minutes), cpus, gpus, "
        "mem (GB), parallel, account, qos, constraint", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean("wait", True, "wait for the Slurm jobs to end", flag_values=values)
    flags.DEFINE_string(
        "search", "", "random or tpe, for a sweep() with ranges", flag_values=values
    )
    flags.DEFINE_integer("trials", 20, "trials of a search", flag_values=values)
    flags.DEFINE_integer("seed", 0, "seed of a search's draws", flag_values=values)
    flags.DEFINE_boolean(
        "prune", True, "in a search, stop trials below the median", flag_values=values
    )


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb."""
    common.refuse_arguments(rest)
    example = "experiments/ablations/expansion.py:cifar"
    path = common.require(values, "config", example)
    workdir = Path(common.require(values, "workdir", "runs/expansion"))
    common.require_at_least(values, jobs=1, lanes=1, max_failures=0, trials=1, seed=0)

    from mobilenet import runtime
    from mobilenet.sweep import listing, points, runner

    config, changes = load_config(path, overrides), load_sweep(path)
    if common.flag(values, "search"):
        return search(values, config, changes, workdir)
    planned = points.points_of(config, changes, workdir, load_variants(path), load_baselines(path))
    if common.flag(values, "dry_run"):
        print(listing.table(planned, workdir, cost_of(path)))
        return 0
    if common.flag(values, "launcher") == "slurm":
        outcome = submit(values, planned, workdir)
        return report(planned, outcome, workdir, waited=common.flag(values, "wait"))
    if common.flag(values, "slurm"):
        raise common.UsageError("--slurm is given without --launcher=slurm.")
    runtime.prepare_compiler()
    outcome = runner.run(
        planned,
        workdir,
        jobs=common.flag(values, "jobs"),
        lanes=common.flag(values, "lanes"),
        retry_failed=common.flag(values, "retry_failed"),
        max_failures=common.flag(values, "max_failures"),
    )
    return report(planned, outcome, workdir)


def cost_of(path: str) -> str:
    """What the experiment file says about its cost, unless it speaks of another scale."""
    from mobilenet.sweep import scales

    said, arg = read_note(path, "Cost"), path.partition(":")[2] or "full"
    scale, _, cost = said.partition(": ")
    if scale not in scales.SCALES:
        return said
    return cost if scale == arg else ""


def report(
    planned: "list[Point]", outcome: "Outcome", workdir: Path, *, waited: bool = True
) -> int:
    """Prints the variants' results and the state of the sweep; returns the exit code.

    Args:
      planned: its points.
      outcome: of the sweep.
      workdir: of the sweep.
      waited: for all points; if not, points that have not ended are no failure.
    """
    from mobilenet.sweep import listing

    if outcome.done:
        print(f"{listing.results(planned, outcome.statuses, workdir)}\n")
    print(listing.summary(planned, outcome.statuses, workdir))
    if outcome.done:
        print(following.lines(following.command("compare", workdir=workdir)))
    if outcome.failed or outcome.having("damaged") or (waited and outcome.unfinished):
        return FAILED
    return DIVERGED if outcome.having("diverged") else 0


def submit(values: flags.FlagValues, planned: "list[Point]", workdir: Path) -> "Outcome":
    """Runs the points as Slurm jobs."""
    if common.flag(values, "jobs") > 1:
        raise common.UsageError(
            "--jobs counts processes on this machine; with --launcher=slurm every run is a job. "
            "--slurm=parallel=N limits how many run at once."
        )
    if common.flag(values, "max_failures"):
        raise common.UsageError("--max_failures has no meaning with --launcher=slurm; drop it.")
    from mobilenet.sweep import slurm

    return slurm.run(
        planned,
        workdir,
        settings=slurm.parse(common.flag(values, "slurm")),
        lanes=common.flag(values, "lanes"),
        threads=common.flag(values, "threads") or None,
        retry_failed=common.flag(values, "retry_failed"),
        wait=common.flag(values, "wait"),
    )


def search(values: flags.FlagValues, config: Config, overrides: list[dict], workdir: Path) -> int:
    """Runs a search in this process and prints the best trials."""
    for name in ("jobs", "lanes"):
        if common.flag(values, name) > 1:
            raise common.UsageError(
                f"--search trains one run after the other; leave --{name} out, and start the "
                "same command several times to search in parallel."
            )
    for name in ("dry_run", "retry_failed", "max_failures", "slurm"):
        if common.flag(values, name):
            raise common.UsageError(f"--{name} has no meaning with --search; leave it out.")
    if common.flag(values, "launcher") != "local":
        raise common.UsageError("--search runs on this machine; leave --launcher out.")

    from mobilenet import runtime
    from mobilenet.sweep import naming

    try:
        from mobilenet.sweep import search as search_lib
    except ImportError as error:
        raise common.UsageError(
            "--search needs Optuna; `pip install -e '.[sweep]'` in the checkout brings it."
        ) from error

    runtime.prepare_compiler()
    trials = search_lib.run(
        config,
        overrides,
        workdir,
        method=common.flag(values, "search"),
        trials=common.flag(values, "trials"),
        seed=common.flag(values, "seed"),
        prune=common.flag(values, "prune"),
        say=lambda text: print(printable(text), file=sys.stderr, flush=True),
    )
    counts = {s: sum(t.status == s for t in trials) for s in ("complete", "pruned", "fail")}
    print(f"{len(trials)} trials: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n))
    for trial in trials[:5]:
        if trial.status == "complete" and trial.score is not None:
            print(f"  validation top-1 {100 * trial.score:.2f} %: {naming.describe(trial.values)}")
    print(f"sweep directory: {workdir}")
    return FAILED if counts["fail"] else 0
