r"""Times training steps, evaluation and single blocks next to plain Flax and PyTorch.

    mobilenet benchmark --config=experiments/benchmarks/steps.py --workdir=runs/b
    mobilenet benchmark --config=experiments/benchmarks/steps.py --workdir=runs/b --only=train_224
    mobilenet benchmark --config=experiments/baselines/cifar10.py --workdir=runs/mine \
        --batch_size=64

A file with `cases()` says what to measure; any other configuration is measured training and
evaluating. PyTorch takes part if it is installed (`pip install -e '.[benchmark]'`). Results are
written to WORKDIR/benchmark.csv, .json and .png. Cases that are in there are not measured again.
"""

import functools
import os
from pathlib import Path

from absl import flags

from mobilenet import config as config_lib
from mobilenet import settings
from mobilenet.cli import common
from mobilenet.experiment import load_config, load_module

REQUIRED = ("config", "workdir")


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    flags.DEFINE_string("config", "", "file.py, with or without cases()", flag_values=values)
    flags.DEFINE_string("workdir", "", "where the results go", flag_values=values)
    flags.DEFINE_list("only", [], "measure only the cases with these names", flag_values=values)
    flags.DEFINE_list(
        "implementations", [], "measure these instead of the file's", flag_values=values
    )
    flags.DEFINE_integer("rounds", 7, "how often each implementation is timed", flag_values=values)
    flags.DEFINE_integer(
        "batch_size", 16, "images per step, for a file without cases()", flag_values=values
    )


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb."""
    common.refuse_arguments(rest)
    path = common.require(values, "config", "experiments/benchmarks/steps.py")
    workdir = Path(common.require(values, "workdir", "runs/benchmark"))
    common.require_at_least(values, rounds=1, batch_size=1)

    # This process has the device's name from JAX, and leaves its memory to those that measure.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    from mobilenet.benchmark import implementations, suite
    from mobilenet.report import benchmarks
    from mobilenet.train import records

    chosen = tuple(common.flag(values, "implementations"))
    unknown = [name for name in chosen if name not in implementations.NAMES]
    if unknown:
        raise common.UsageError(
            f"--implementations has {unknown[0]!r}; allowed are {', '.join(implementations.NAMES)}."
        )
    described = getattr(load_module(path), "cases", None)
    entries = (
        described()
        if described
        else [
            {"name": work, "work": work, "batch_size": common.flag(values, "batch_size")}
            for work in ("train", "evaluate")
        ]
    )
    cases = []
    for entry in entries:
        entry = dict(entry)
        config = load_config(path, overrides)
        config_lib.update(config, entry.pop("overrides", {}))
        config_lib.validate(config)
        if chosen:
            entry["implementations"] = chosen
        cases.append(suite.Case(config=config, **entry))
    only = common.flag(values, "only")
    missing = [name for name in only if name not in {case.name for case in cases}]
    if missing:
        known = settings.choices(missing[0], [case.name for case in cases])
        raise common.UsageError(f"--only has {missing[0]!r}; {known}")
    cases = [case for case in cases if not only or case.name in only]
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        rows = suite.run(
            cases,
            workdir / "benchmark.csv",
            rounds=common.flag(values, "rounds"),
            environment=records.environment(),
            say=functools.partial(print, flush=True),
        )
    except suite.BenchmarkError as error:
        raise common.Failure(str(error)) from error
    benchmarks.plot(rows, workdir / "benchmark.png")
    print(f"results: {workdir}/benchmark.csv, .json, .png")
    return 0
