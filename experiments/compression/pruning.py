"""Sparse weights. Asks: what does a sparsity cost, and is large and sparse better than small?

Magnitude pruning along the cubic schedule of Zhu & Gupta 2017 (arXiv 1710.01878), whose MobileNetV1
keeps 69.5 % top-1 at a sparsity of 50 % and 61.8 % at 90 % (experiments/reference/compression.csv),
2:4, and other ways to choose the weights at one sparsity. Depthwise kernels and the stem stay
dense. Beside each sparsity stands the dense network of about as many weights as are left.

    (none)   CIFAR-10 at 32 pixels, width 1.0, 200 epochs: for a GPU
    cifar    5,000 pictures at 24 pixels, width 0.5, 8 epochs: minutes a run on two cores
    smoke    two steps on the embedded digits

Run:    mobilenet sweep --config=experiments/compression/pruning.py:cifar --workdir=runs/pruning \
            --config.data.data_dir=DIRECTORY_OF_TFDS
"""

from mobilenet import config as base
from mobilenet.sweep import scales
from mobilenet.sweep.space import product, seeds

SCALES = ("full", "cifar", "smoke")
SPARSITIES = (0.5, 0.75, 0.9, 0.95)
# Widths whose networks have about as many parameters as the sparse one has left.
SMALL = {
    "full": {0.5: 0.67, 0.75: 0.42, 0.9: 0.22, 0.95: 0.12},
    "cifar": {0.5: 0.32, 0.75: 0.19, 0.9: 0.09},
    "smoke": {0.5: 0.12},
}
PRUNING = "compress.pruning."


def get_config(arg=""):
    """The dense run; the smoke form prunes, so that its two steps say something."""
    config = scales.base(arg, SCALES)
    if arg != "smoke":
        config.model.width_multiplier = 0.5 if arg == "cifar" else 1.0
        return config
    base.update(config, {**_gradually(config), f"{PRUNING}sparsity": 0.5})
    config.compress.pruning.every_steps = 1
    return config


def _gradually(config):
    """An eighth of the run dense, half of it ever sparser, the rest to recover."""
    epochs = config.train.num_epochs
    return {
        f"{PRUNING}method": "magnitude",
        f"{PRUNING}schedule": "cubic",
        f"{PRUNING}start_epoch": epochs / 8,
        f"{PRUNING}end_epoch": epochs * 5 / 8,
        f"{PRUNING}every_steps": 20,
    }


def arms(arg=""):
    """Name of an arm -> what it overrides."""
    gradual = _gradually(get_config(arg))
    at_90 = {**gradual, f"{PRUNING}sparsity": 0.9}
    from_start = {**at_90, f"{PRUNING}schedule": "one_shot", f"{PRUNING}start_epoch": 0.0}
    erk, together = {f"{PRUNING}distribution": "erk"}, {f"{PRUNING}distribution": "global"}
    small = {
        f"width for {100 * s:g} %": {"model.width_multiplier": width}
        for s, width in SMALL[scales.name_of(arg, SCALES)].items()
    }
    dense = {"dense": {}, **small}
    if arg == "smoke":
        off = {f"{PRUNING}method": "none", f"{PRUNING}sparsity": 0.0}
        dense = {name: {**off, **overrides} for name, overrides in dense.items()}
    return {
        **dense,
        **{f"{100 * s:g} %": {**gradual, f"{PRUNING}sparsity": s} for s in SPARSITIES},
        "2:4": {**gradual, f"{PRUNING}sparsity": 0.5, f"{PRUNING}pattern": "2:4"},
        "90 %, ERK": {**at_90, **erk},
        "90 %, global": {**at_90, **together},
        "90 %, random": {**at_90, f"{PRUNING}method": "random"},
        "90 %, SNIP": {**from_start, **together, f"{PRUNING}method": "saliency"},
        "90 %, RigL": {**from_start, **erk, f"{PRUNING}method": "rigl"},
    }


def sweep(arg=""):
    return product(list(arms(arg).values()), seeds(scales.seeds_at(arg)))
