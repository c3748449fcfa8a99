"""Structured pruning: a run's expanded channels cut to a budget, as a new run directory.

    mobilenet shrink --workdir=runs/c10 --to=runs/c10_half --macs=0.5
    mobilenet shrink --workdir=runs/c10 --to=runs/c10_small --params=800000 --score=taylor
    mobilenet shrink --workdir=runs/c10                          # what is left of a run, in numbers

A fraction below 1 is of the run; other numbers are counts. The new run is evaluated, predicts and
exports as it is; --config.pretrained=runs/c10_half trains it on. Iterative pruning is both in turn.
Without --to nothing is cut: sparsity, parameters, MACs and bytes of the run are printed.
"""

import json
from pathlib import Path
from typing import Any

from absl import flags

from mobilenet.cli import common


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    flags.DEFINE_string("to", "", "the run directory to make", flag_values=values)
    flags.DEFINE_float("macs", 0.0, "MACs that may be left, or their fraction", flag_values=values)
    flags.DEFINE_float(
        "params", 0.0, "parameters that may be left, or their fraction", flag_values=values
    )
    flags.DEFINE_string(
        "score", "l1", "of a channel: l1, bn_scale, taylor (on training data)", flag_values=values
    )
    flags.DEFINE_integer(
        "divisor", 8, "widths that are cut are multiples of it", flag_values=values
    )
    flags.DEFINE_integer("examples", 512, "training pictures for taylor", flag_values=values)
    flags.DEFINE_boolean("json", False, "print JSON", flag_values=values)
    common.define_checkpoint(values)


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb."""
    common.refuse_arguments(rest)
    if overrides:
        raise common.UsageError("--config goes with train; a run has its own configuration.")
    workdir = Path(common.require(values, "workdir", "runs/c10"))
    budgets = {name: common.flag(values, name) for name in ("macs", "params")}
    given = [name for name in budgets if values[name].present]
    if bool(common.flag(values, "to")) != (len(given) == 1) or len(given) > 1:
        raise common.UsageError(
            "Give --to=NEW_RUN with either --macs or --params, such as --to=runs/half --macs=0.5, "
            "or none of them to see what a run has left."
        )

    from mobilenet import compression

    if not given:
        found = compression.describe_run(workdir, common.flag(values, "checkpoint"))
        print(json.dumps(found, indent=2) if common.flag(values, "json") else _table(found))
        return 0
    target = Path(common.flag(values, "to"))
    done = compression.shrink_run(
        workdir,
        target,
        budget=given[0],
        amount=budgets[given[0]],
        score=common.flag(values, "score"),
        divisor=common.flag(values, "divisor"),
        examples=common.flag(values, "examples"),
        which=common.flag(values, "checkpoint"),
    )
    before, after = done.before, done.after
    print(
        f"{target}: {after.params:,} of {before.params:,} parameters, "
        f"{after.macs:,} of {before.macs:,} MACs"
    )
    for name, (wide, narrow) in done.widths.items():
        print(f"{name:<12} {wide:>5} -> {narrow}")
    return 0


def _table(found: dict[str, Any]) -> str:
    sparsity = found["sparsity"]
    lines = [
        f"sparsity: {100 * sparsity['prunable']:.2f} % of prunable weights, "
        f"{100 * sparsity['model']:.2f} % of the model",
        f"parameters: {found['nonzero_params']:,} of {found['params']:,} are not 0",
        f"MACs: {found['nonzero_macs']:,} of {found['macs']:,} have a weight that is not 0",
        "bytes: " + ", ".join(f"{name} {count:,}" for name, count in found["bytes"].items()),
    ]
    lines += [f"{name:<24} {100 * value:>6.2f} %" for name, value in sparsity["tensors"].items()]
    return "\n".join(lines)
