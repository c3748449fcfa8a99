"""Fewer channels. Asks: is a cut and fine-tuned network better than one that was narrow all along?

A dense run of each seed is cut to 75, 50 and 35 % of its MACs (`mobilenet shrink`) and trained on;
beside each stands the width multiplier of the same cost (within 10 %), trained for as many epochs
as both parts together. AMC (arXiv 1802.03494), MetaPruning (1903.10258) and slimmable networks
(1812.08928) are in experiments/reference/compression.csv.

    (none)   CIFAR-10 at 32 pixels, width 1.0, 200 epochs: for a GPU
    cifar    5,000 pictures at 24 pixels, width 0.5, 8 epochs: minutes a run on two cores
    smoke    two steps on the embedded digits

Run:    for s in 0 1 2; do
            mobilenet train --config=experiments/compression/structured.py:cifar \
                --workdir=runs/structured/dense_$s --config.seed=$s \
                --config.data.data_dir=DIRECTORY_OF_TFDS
            for m in 0.75 0.5 0.35; do
                mobilenet shrink --workdir=runs/structured/dense_$s --macs=$m \
                    --to=runs/structured/cut_${m}_$s
            done
        done
        mobilenet sweep --config=experiments/compression/structured.py:cifar \
            --workdir=runs/structured/sweep --config.data.data_dir=DIRECTORY_OF_TFDS
"""

from mobilenet.sweep import scales
from mobilenet.sweep.space import product, seeds

SCALES = ("full", "cifar", "smoke")
# Fraction of the MACs -> the width multiplier of that cost.
WIDTHS = {
    "full": {0.75: 0.82, 0.5: 0.64, 0.35: 0.55},
    "cifar": {0.75: 0.38, 0.5: 0.28, 0.35: 0.27},
    "smoke": {0.75: 0.14},
}
RUNS = "runs/structured"


def get_config(arg=""):
    """The dense run, which is cut afterwards."""
    config = scales.base(arg, SCALES)
    if arg != "smoke":
        config.model.width_multiplier = 0.5 if arg == "cifar" else 1.0
    return config


def widths(arg=""):
    """Name of an arm -> what it overrides: the width multipliers."""
    config = get_config(arg)
    longer = {"train.num_epochs": 2 * config.train.num_epochs}
    return {
        "dense": {},
        "dense, longer": longer,
        **{
            f"width for {100 * macs:g} %": {"model.width_multiplier": width, **longer}
            for macs, width in WIDTHS[scales.name_of(arg, SCALES)].items()
        },
    }


def sweep(arg=""):
    count = scales.seeds_at(arg)
    narrow = product(list(widths(arg).values()), seeds(count))
    if arg == "smoke":
        return narrow
    learning_rate = get_config(arg).optimizer.learning_rate
    cut = [
        {
            "pretrained": f"{RUNS}/cut_{macs:g}_{seed}",
            "model.width_multiplier": 1.0,  # the base's: the cut run's comes with its weights
            "optimizer.learning_rate": learning_rate / 4,
            "seed": seed,
        }
        for macs in WIDTHS[scales.name_of(arg, SCALES)]
        for seed in range(count)
    ]
    return narrow + cut
