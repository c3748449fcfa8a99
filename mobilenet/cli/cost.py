r"""Prints parameters, MACs and activation memory of a configuration, layer by layer.

    mobilenet cost --config=experiments/baselines/digits.py
    mobilenet cost --config=experiments/baselines/imagenet_paper.py \
        --config.model.num_classes=1000 --config.model.width_multiplier=0.35 --json
    mobilenet cost --workdir=runs/c10

Nothing is trained, and no image is read.
"""

import dataclasses
import json
from pathlib import Path

from absl import flags

from mobilenet import config as config_lib
from mobilenet import experiment, rundir
from mobilenet.cli import common
from mobilenet.models import cost


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    flags.DEFINE_string(
        "config", "", "the experiment: file.py or file.py:smoke", flag_values=values
    )
    flags.DEFINE_string("workdir", "", "a run directory, instead of --config", flag_values=values)
    flags.DEFINE_boolean("json", False, "print JSON instead of a table", flag_values=values)


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb."""
    common.refuse_arguments(rest)
    workdir = common.flag(values, "workdir")
    if workdir:
        if common.flag(values, "config"):
            raise common.UsageError("--workdir has its own configuration; drop --config=FILE.")
        config = rundir.read_config(Path(workdir))
        experiment.override(config, overrides)
    else:
        path = common.require(values, "config", "experiments/baselines/digits.py")
        config = experiment.load_config(path, overrides)
    if config.model.num_classes is not None and not config.data.data_dir:
        config.data.data_dir = "."  # any: no data is read
    config_lib.validate(config)

    from mobilenet import architecture, build

    classes = build.count_classes(config)
    layers = architecture.layer_costs(config, classes)
    total = cost.totals(layers)
    peaks = architecture.peaks(config, classes)
    if common.flag(values, "json"):
        report = {
            "layers": [dataclasses.asdict(layer) for layer in layers],
            "totals": dataclasses.asdict(total),
            "peak_activation": {name: dataclasses.asdict(peak) for name, peak in peaks.items()},
        }
        print(json.dumps(report, indent=2))
        return 0
    print(f"{'layer':<23} {'output':>13} {'params':>10} {'MACs':>13} {'activations':>11}")
    for layer in layers:
        shape = "x".join(map(str, layer.out_shape))
        print(
            f"{layer.name:<23} {shape:>13} {layer.params:>10,} {layer.macs:>13,} "
            f"{layer.activation_elements:>11,}"
        )
    print(f"{'total':<23} {'':>13} {total.params:>10,} {total.macs:>13,}")
    print(
        f"\nparameters: {total.params:,} trainable, {total.params_weights:,} weights alone,\n"
        f"            {total.params_folded:,} with BN folded, "
        f"{total.params_with_statistics:,} with BN statistics"
    )
    if peaks:
        print(
            f"\n{'peak activations, batch 1':<25} {'elements':>10} {'int8':>9} {'float32':>10}  at"
        )
    for name, peak in peaks.items():
        sizes = [f"{scale * peak.elements / 1024:,.0f} KiB" for scale in (1, 4)]
        print(f"{name:<25} {peak.elements:>10,} {sizes[0]:>9} {sizes[1]:>10}  {peak.at}")
    if not peaks:
        print(
            "\npeak activations: defined for MobileNetV2's blocks alone, with shortcuts between\n"
            "bottlenecks"
        )
    return 0
