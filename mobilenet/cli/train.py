r"""Trains a network from a configuration, or continues the run in a directory.

    mobilenet train --config=experiments/baselines/digits.py --workdir=runs/digits
    mobilenet train --config=experiments/baselines/cifar10.py --workdir=runs/c10 \
        --config.model.width_multiplier=0.5
    mobilenet train --workdir=runs/c10      # continue with the run's own configuration

The same command continues an interrupted run from its newest checkpoint. The run directory holds
config.json, metrics.jsonl, summary.json, TensorBoard events and checkpoints.
"""

import signal
from pathlib import Path

from absl import flags

from mobilenet import experiment, rundir
from mobilenet.cli import common, following

REQUIRED = ("workdir",)


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    flags.DEFINE_string(
        "config",
        "",
        "the experiment: file.py, or file.py:smoke for a small form of it; a directory that holds "
        "a run needs none",
        flag_values=values,
    )
    flags.DEFINE_string("workdir", "", "the run directory", flag_values=values)
    common.define_devices(values)


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb."""
    common.refuse_arguments(rest)
    workdir = Path(common.require(values, "workdir", "runs/digits"))
    # A signal before the loop is ready to save has nothing to lose: it ends the program at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if common.flag(values, "config"):
        config = experiment.load_config(common.flag(values, "config"), overrides)
    elif (workdir / "config.json").exists():
        config = rundir.read_config(workdir)
        experiment.override(config, overrides)
    else:
        raise common.UsageError(
            "--config is missing; for example --config=experiments/baselines/digits.py (a run "
            "directory that exists already needs only --workdir)."
        )
    summary = common.train(values, config, workdir)
    if summary is not None:
        print(common.describe_summary(summary, workdir))
        print(following.trained(workdir, config, tuple(summary.get("examples", ()))))
    return 0
