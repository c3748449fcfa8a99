r"""Quantises a run after its training, or finds what each of its layers loses.

    mobilenet quantize --workdir=runs/c10 --to=runs/c10_w8a8
    mobilenet quantize --workdir=runs/c10 --to=runs/c10_w4a8 \
        --config.quantize.weights.bits=4 --config.quantize.weights.ranges=fixed \
        --config.quantize.adaround_steps=1000
    mobilenet quantize --workdir=runs/c10_w8a8 --sensitivity=2,4,8      # each layer alone
    mobilenet quantize --workdir=runs/c10_w8a8 --sensitivity=2,4,8 --budget=5,4

With --to, ranges are calibrated on training images, and the new run directory evaluates, predicts
and exports as any other. Weights and activations have 8 bits unless --config.quantize.weights.bits
or --config.quantize.activations.bits is given; --config.quantize.rules says where they differ. To
train with rounding, start `mobilenet train` from the float run instead, with
--config.pretrained=RUN and --config.quantize.weights.bits=8.

With --sensitivity, one layer at a time is rounded and all others stay float. The result is written
to sensitivity_weights.csv and .png in the run directory. --budget is the mean number of bits per
weight: for each, the overrides that keep it are printed, for the next `quantize --to` or `train`.
"""

from pathlib import Path
from typing import Any

from absl import flags

from mobilenet import config as config_lib
from mobilenet import experiment, rundir, settings, terminal
from mobilenet.cli import common, following
from mobilenet.config import Config
from mobilenet.report import rows as table_rows

REQUIRED = ("workdir",)
OVERRIDES = "set a key of the new run, such as --config.quantize.weights.bits=4"
PLACEHOLDERS = {"sensitivity": "BITS,BITS", "budget": "BITS,BITS"}


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    common.define_checkpoint(values)
    flags.DEFINE_string("to", "", "the run directory to make", flag_values=values)
    flags.DEFINE_list(
        "sensitivity",
        [],
        "instead of --to: numbers of bits to try at each layer alone",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "of", "weights", ["weights", "activations"], "what --sensitivity rounds", flag_values=values
    )
    flags.DEFINE_list(
        "budget",
        [],
        "with --sensitivity: mean bits per weight to keep",
        flag_values=values,
    )
    flags.DEFINE_integer("examples", 512, "validation images of --sensitivity", flag_values=values)
    common.define_devices(values)


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb."""
    common.refuse_arguments(rest)
    workdir = Path(common.require(values, "workdir", "runs/digits"))
    bits, target = common.flag(values, "sensitivity"), common.flag(values, "to")
    if bool(bits) == bool(target):
        raise common.UsageError(
            "Give either --to=RUN, to quantise a run, or --sensitivity=BITS,BITS, to look at a "
            "quantised one."
        )
    if target:
        for name in ("budget", "checkpoint"):
            if values[name].present:
                raise common.UsageError(f"--{name} goes with --sensitivity; drop it.")
        return _quantize(values, workdir, Path(target), overrides)
    return _look(values, workdir, bits, overrides)


def ptq_config(workdir: Path, overrides: dict[str, str]) -> Config:
    """The configuration of a run that quantises the one in `workdir`, without training."""
    config = rundir.read_config(workdir)
    if config_lib.is_quantized(config):
        raise config_lib.ConfigError(
            f"{workdir} is quantised already; give the float run that it was made of, "
            f"{config.pretrained or 'or train one'}."
        )
    config_lib.update(
        config,
        {
            "pretrained": str(workdir),
            "train.num_epochs": 0.0,
            "train.ema_decay": 0.0,
            "train.patience": 0,
            "schedule.warmup_epochs": 0.0,
            "finetune.train_from": "",
            **_training_of(config),
        },
    )
    if not any(key.startswith("quantize.") and key.endswith(".bits") for key in overrides):
        bits = {"quantize.weights.bits": "8", "quantize.activations.bits": "8"}
        overrides = {**bits, **overrides}
    experiment.override(config, overrides)
    return config


def _training_of(config: Config) -> dict[str, Any]:
    """Defaults of what only training compresses with: weights that are 0 stay so without it.

    The rules and the pattern of a pruned run remain: they say whose zeros are counted.
    """
    default = dict(config_lib.flatten(config_lib.get_config()))
    kept = ("compress.pruning.rules", "compress.pruning.pattern")
    return {
        key: default[key]
        for key, _ in config_lib.flatten(config)
        if key.startswith("compress.") and key not in kept
    }


def _quantize(
    values: flags.FlagValues, workdir: Path, target: Path, overrides: dict[str, str]
) -> int:
    summary = common.train(values, ptq_config(workdir, overrides), target)
    if summary is None:
        return 0
    from mobilenet import build

    facts = rundir.read_object(
        target / build.QUANTIZATION_FILE, "float_bytes", "weight_bytes", "mean_bits"
    )
    print(
        f"kernels: {facts['float_bytes'] / 1e6:.2f} MB in float32, "
        f"{facts['weight_bytes'] / 1e6:.2f} MB at {facts['mean_bits']:.3g} bits per weight"
    )
    for split in ("validation", "test"):
        if split in summary:
            scores = summary[split]
            images = terminal.counted(scores["examples"], "image")
            print(f"{split}: top-1 {100 * scores['top1']:.2f} % of {images}")
    print(f"run directory: {target}")
    print(
        following.lines(
            following.command("export", workdir=target, to="litert", verify=True),
            following.command("quantize", workdir=target, sensitivity="2,4,8"),
        )
    )
    return 0


def _look(
    values: flags.FlagValues, workdir: Path, texts: list[str], overrides: dict[str, str]
) -> int:
    bits = [settings.parse("--sensitivity", settings.Kind(int), text) for text in texts]
    which = common.flag(values, "of")
    given = common.flag(values, "budget")
    budgets = [settings.parse("--budget", settings.Kind(float), text) for text in given]
    if budgets and which != "weights":
        raise common.UsageError("--budget is one of weights; drop --of=activations.")
    common.require_at_least(values, examples=1)
    config = common.run_config(workdir, overrides, verb="quantize --sensitivity")
    common.apply_cpu_devices(values)

    import pandas as pd

    from mobilenet import build, inference, quantization, runtime
    from mobilenet.analysis import plots

    runtime.prepare_compiler()
    with common.devices(values):
        restored = inference.read_checkpoint(workdir, common.flag(values, "checkpoint"))
        data = build.build_data(config, workdir, match_classes=True)
        losses = quantization.sensitivity(
            config,
            data,
            restored.eval_variables,
            bits=bits,
            which=which,
            examples=common.flag(values, "examples"),
            progress=print,
        )
    commands = []
    for budget in budgets:
        chosen, rules = quantization.choose_bits(losses, config, restored.eval_variables, budget)
        counts = {b: sum(1 for c in chosen.values() if c == b) for b in sorted(set(bits))}
        print(
            f"within {budget:g} bits per weight: "
            + ", ".join(f"{terminal.counted(n, 'layer')} at {b}" for b, n in counts.items())
        )
        commands.append(
            following.command(
                "quantize",
                workdir=config.pretrained or "FLOAT_RUN",
                to=f"{workdir}_{budget:g}_bits",
                config__quantize__weights__bits=config.quantize.weights.bits,
                config__quantize__activations__bits=config.quantize.activations.bits,
                config__quantize__rules=rules,
            )
        )
    path = workdir / f"sensitivity_{which}.csv"

    def write() -> None:
        table_rows.write(path, quantization.FIELDS, [vars(loss) for loss in losses])
        figure = plots.sensitivity(pd.read_csv(path), of=which, network=plots.network(config))
        plots.save(figure, path.with_suffix(".png"))

    if common.keeps("quantize", write):
        print(f"results: {path}, .png")
    if commands:
        print(following.lines(*commands))
    return 0
