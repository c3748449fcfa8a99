r"""Cuts a run's expanded channels to a budget, as a new run directory (structured pruning).

    mobilenet shrink --workdir=runs/c10             # what is left of a run, in numbers
    mobilenet shrink --workdir=runs/c10 --to=runs/c10_half --macs=0.5
    mobilenet shrink --workdir=runs/c10 --to=runs/small --params=800000 --score=taylor
    mobilenet shrink --workdir=runs/c10 --to=runs/c10_half --macs=0.5 --rounds=4 \
        --config=experiments/baselines/cifar10.py --config.train.num_epochs=20

--macs and --params are fractions of the run if they are below 1; other numbers are counts. The new
run loses most of its accuracy until it is trained: `mobilenet train` does that with
--config.pretrained=NEW_RUN. With --config=FILE the cut network is trained at once, in --rounds of
cutting and training, which all leave the same fraction of the round before. The same command
continues, and TO/rounds/ keeps the networks between. Without --to nothing is cut: sparsity,
parameters, MACs and bytes of the run are printed.
"""

import functools
import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from mobilenet import config as config_lib
from mobilenet import experiment, rundir
from mobilenet.cli import common, following
from mobilenet.config import Config

if TYPE_CHECKING:  # it imports JAX, which flags need not wait for
    from mobilenet.compression import Shrunk


REQUIRED = ("workdir",)
OVERRIDES = "with --config=FILE: set a key of the training; else of how the run is read"
PLACEHOLDERS = {"score": "l1|bn_scale|taylor"}


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    common.define_checkpoint(values)
    flags.DEFINE_string("to", "", "the run directory to make", flag_values=values)
    flags.DEFINE_float("macs", None, "MACs to leave, as a count or a fraction", flag_values=values)
    flags.DEFINE_float(
        "params", None, "parameters to leave, as a count or a fraction", flag_values=values
    )
    flags.DEFINE_string(
        "score",
        "l1",
        "what a channel is worth: l1, bn_scale, or taylor (on training images)",
        flag_values=values,
    )
    flags.DEFINE_integer("divisor", 8, "cut widths are multiples of it", flag_values=values)
    flags.DEFINE_integer("examples", 512, "training images for --score=taylor", flag_values=values)
    flags.DEFINE_string(
        "config", "", "file.py that each cut network is trained with", flag_values=values
    )
    flags.DEFINE_integer(
        "rounds", 1, "rounds of cutting and training, with --config=FILE", flag_values=values
    )
    flags.DEFINE_boolean("json", False, "print the numbers of a run as JSON", flag_values=values)


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb."""
    common.refuse_arguments(rest)
    file, rounds = common.flag(values, "config"), common.flag(values, "rounds")
    common.require_at_least(values, rounds=1)
    # Keys of how a run is carried out are the cut run's as well as the training's.
    carried = {k: v for k, v in overrides.items() if k.startswith(config_lib.RUNTIME_KEYS)}
    if (len(carried) < len(overrides) or rounds > 1) and not file:
        raise common.UsageError(
            "Give --config=FILE, which says how the cut networks are trained, with --rounds and "
            "--config overrides; without it, only overrides of how the run is read are taken, such "
            "as --config.data.data_dir."
        )
    workdir = Path(common.require(values, "workdir", "runs/c10"))
    budgets = {name: common.flag(values, name) for name in ("macs", "params")}
    given = [name for name in budgets if values[name].present]
    if bool(common.flag(values, "to")) != (len(given) == 1) or len(given) > 1:
        raise common.UsageError(
            "Give --to=NEW_RUN with either --macs or --params, such as --to=runs/half --macs=0.5, "
            "or none of them to see what a run has left."
        )
    if file and not given:
        raise common.UsageError("--config trains what is cut; give --to with --macs or --params.")

    from mobilenet import compression

    if not given:
        common.run_config(workdir, carried, verb="shrink")
        found = compression.describe_run(workdir, common.flag(values, "checkpoint"))
        print(json.dumps(found, indent=2) if common.flag(values, "json") else _table(found))
        return 0
    target = Path(common.flag(values, "to"))
    cut = functools.partial(
        compression.shrink_run,
        budget=given[0],
        score=common.flag(values, "score"),
        divisor=common.flag(values, "divisor"),
        examples=common.flag(values, "examples"),
    )
    if file:
        config = experiment.load_config(file, overrides)
        return _in_rounds(values, config, carried, workdir, target, cut, budgets[given[0]])
    config = common.run_config(workdir, carried, verb="shrink")
    which = common.flag(values, "checkpoint")
    _tell(target, cut(workdir, target, amount=budgets[given[0]], which=which, config=config))
    print("Most of its accuracy is gone until it is trained:")
    trained = target.with_name(f"{target.name}_trained")
    print(following.lines(following.train_on(target, config, trained)))
    return 0


def _in_rounds(
    values: flags.FlagValues,
    config: Config,
    carried: Mapping[str, str],
    workdir: Path,
    target: Path,
    cut: "functools.partial[Shrunk]",
    amount: float,
) -> int:
    """Cuts and trains in turns.

    Args:
      values: of the flags.
      config: of the training, without `pretrained`.
      carried: overrides of how the runs that are cut are read.
      workdir: the run that is cut first.
      target: the last one.
      cut: `compression.shrink_run` with what all rounds share.
      amount: of the budget that is left in the end.
    """
    from mobilenet import compression

    # A signal before the loop is ready to save has nothing to lose: it ends the program at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if config.pretrained:
        raise common.UsageError(
            f"pretrained is {config.pretrained!r}; each round starts from what it has cut."
        )
    found = compression.rounds_to(
        workdir,
        budget=cut.keywords["budget"],
        amount=amount,
        rounds=common.flag(values, "rounds"),
        divisor=cut.keywords["divisor"],
    )
    plan = {
        "workdir": str(workdir),
        "checkpoint": common.flag(values, "checkpoint"),
        "amounts": found,
        **{key: str(value) for key, value in cut.keywords.items()},
    }
    begun = rundir.read_json(target / "rounds" / "plan.json", dict) or plan
    if begun != plan:
        differing = ", ".join(
            f"{k} {begun.get(k)}, now {plan[k]}" for k in plan if begun.get(k) != plan[k]
        )
        raise common.UsageError(f"{target} was begun with {differing}; give another --to.")
    with rundir.writing(target):
        (target / "rounds").mkdir(parents=True, exist_ok=True)
    rundir.write_json(target / "rounds" / "plan.json", plan)
    source, which, summary = workdir, common.flag(values, "checkpoint"), None
    for number, left in enumerate(found, 1):
        place = target / "rounds" / str(number)
        trained = target if number == len(found) else place / "trained"
        if not (place / "cut").exists():
            own = common.run_config(source, carried, verb="shrink")
            done = cut(source, place / "cut", amount=left, which=which, config=own)
            _tell(place / "cut", done)
        config.pretrained = str(place / "cut")
        summary = common.train(values, config.copy_and_resolve_references(), trained)
        source, which = trained, "result"
    if summary is not None:
        print(common.describe_summary(summary, target))
        print(following.trained(target, config, tuple(summary.get("examples", ()))))
    return 0


def _tell(target: Path, done: "Shrunk") -> None:
    before, after = done.before, done.after
    print(
        f"{target}: {after.params:,} of {before.params:,} parameters, "
        f"{after.macs:,} of {before.macs:,} MACs"
    )
    for name, (wide, narrow) in done.widths.items():
        print(f"{name:<12} {wide:>5} -> {narrow}", flush=True)


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
