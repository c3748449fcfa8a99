"""Trains every point of an experiment's `sweep()` that is not done yet.

    mobilenet sweep --config=experiments/ablations/expansion.py:cifar --workdir=runs/expansion
    mobilenet sweep ... --dry_run                 # the points, their cost, and what is done
    mobilenet sweep ... --jobs=4                  # in four processes
    mobilenet sweep ... --lanes=8                 # eight points of one shape in one program
    mobilenet sweep ... --retry_failed --max_failures=3

The same command continues after anything; done points are never trained again. A point is known by
a hash of its configuration: a changed configuration is a new point. Overrides with --config.KEY
change every point.
"""

import inspect
from pathlib import Path

from absl import flags

from mobilenet.cli import common
from mobilenet.cli.main import DIVERGED, FAILED


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    flags.DEFINE_string("config", "", "file.py or file.py:arg, with sweep()", flag_values=values)
    flags.DEFINE_string("workdir", "", "directory of the sweep", flag_values=values)
    flags.DEFINE_boolean("dry_run", False, "show the points and train none", flag_values=values)
    flags.DEFINE_integer("jobs", 1, "processes that train points", flag_values=values)
    flags.DEFINE_integer("lanes", 1, "points of one shape in one program", flag_values=values)
    flags.DEFINE_boolean(
        "retry_failed", False, "train points that failed before again", flag_values=values
    )
    flags.DEFINE_integer(
        "max_failures", 0, "stop after so many failed points; 0 never", flag_values=values
    )


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb."""
    common.refuse_arguments(rest)
    example = "experiments/ablations/expansion.py:cifar"
    path = common.require(values, "config", example)
    workdir = Path(common.require(values, "workdir", "runs/expansion"))
    for name, least in (("jobs", 1), ("lanes", 1), ("max_failures", 0)):
        if common.flag(values, name) < least:
            raise common.UsageError(
                f"--{name} is {common.flag(values, name)}; it must be {least} or more."
            )

    from mobilenet import runtime
    from mobilenet.sweep import listing, points, runner

    planned = points.points_of(common.load_config(path, overrides), load_sweep(path))
    if common.flag(values, "dry_run"):
        print(listing.table(planned, workdir))
        return 0
    runtime.cache_compilations()
    outcome = runner.run(
        planned,
        workdir,
        jobs=common.flag(values, "jobs"),
        lanes=common.flag(values, "lanes"),
        retry_failed=common.flag(values, "retry_failed"),
        max_failures=common.flag(values, "max_failures"),
    )
    print(listing.summary(planned, outcome.statuses, workdir))
    if outcome.failed:
        return FAILED
    return DIVERGED if outcome.having("diverged") else 0


def load_sweep(path: str) -> list[dict]:
    """The overrides that an experiment file's `sweep()` returns.

    Raises:
      UsageError: it has none.
    """
    file, _, arg = path.partition(":")
    sweep = getattr(common.load_module(path), "sweep", None)
    if sweep is None:
        raise common.UsageError(
            f"--config={file} has no sweep(); it must return a list of overrides, as "
            "experiments/ablations/expansion.py does."
        )
    return list(sweep(arg) if inspect.signature(sweep).parameters else sweep())
