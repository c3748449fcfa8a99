"""Sparse weights. Asks: is large and sparse better than small?

Magnitude pruning with the cubic schedule of Zhu & Gupta 2017 (arXiv 1710.01878), whose MobileNetV1
keeps 69.5 % top-1 at a sparsity of 50 % and 61.8 % at 90 % (experiments/reference/compression.csv),
and the pattern 2:4. The full scale also has other ways to choose the weights. Depthwise kernels and
the stem stay dense. Each seed continues from its dense run of experiments/compression/budgets.py.
For comparison there are dense networks with about as many weights as are left, and networks that
are pruned while they train from scratch; both train for as many epochs as both parts together.

    full     CIFAR-10 at 32 pixels, width 1.0, 50 epochs after 200: for a GPU
    cifar    15,000 images at 24 pixels, width 0.5, 3 epochs after 8: minutes a run on two cores
    smoke    two steps on the embedded digits

Run:    the dense runs of experiments/compression/budgets.py, then in one directory with it
        mobilenet sweep --config=experiments/compression/pruning.py:cifar \
            --workdir=runs/compression --config.data.data_dir=DIRECTORY_OF_TFDS
Cost:   cifar: 33 runs of 3 min on 2 CPU cores, after 3 parents
Result: experiments/results/compression.csv
"""

from mobilenet.sweep import scales

SCALES = ("full", "cifar", "smoke")
SPARSITIES = {"full": (0.5, 0.75, 0.9, 0.95), "cifar": (0.5, 0.75, 0.9), "smoke": (0.5,)}
# Widths whose networks have about as many parameters as the sparse one has left.
SMALL = {
    "full": {0.5: 0.68, 0.75: 0.46, 0.9: 0.28, 0.95: 0.2},
    "cifar": {0.5: 0.36, 0.75: 0.24, 0.9: 0.14},
    "smoke": {0.5: 0.12},
}
PRUNING = "compress.pruning."


def get_config(arg=""):
    """The dense run, which is pruned afterwards; the smoke form prunes from scratch."""
    return scales.dense(arg, SCALES)


def _after(arg):
    """Overrides of the runs that continue from the dense run."""
    if arg == "smoke":
        return {"train.num_epochs": scales.base(arg).train.num_epochs}
    return {**scales.compressing(arg, SCALES), "pretrained": "runs/dense_{seed}"}


def _gradually(run, start=0.0):
    """Sparsity grows until five eighths of a run's epochs; in the rest the network recovers."""
    return {
        **run,
        f"{PRUNING}method": "magnitude",
        f"{PRUNING}schedule": "cubic",
        f"{PRUNING}start_epoch": start * run["train.num_epochs"],
        f"{PRUNING}end_epoch": run["train.num_epochs"] * 5 / 8,
        f"{PRUNING}every_steps": 10,
    }


def variants(arg=""):
    """Name of a variant -> what it overrides."""
    scale, after, longer = scales.name_of(arg, SCALES), _after(arg), scales.as_long(arg, SCALES)
    gradual, anew = _gradually(after), _gradually(longer, start=1 / 8)
    at_90 = {**gradual, f"{PRUNING}sparsity": 0.9}
    at_once = {**at_90, f"{PRUNING}schedule": "one_shot"}
    erk, together = {f"{PRUNING}distribution": "erk"}, {f"{PRUNING}distribution": "global"}
    found = {
        "dense": after,
        **{f"{100 * s:g} %": {**gradual, f"{PRUNING}sparsity": s} for s in SPARSITIES[scale]},
        "2:4": {**gradual, f"{PRUNING}sparsity": 0.5, f"{PRUNING}pattern": "2:4"},
    }
    if scale == "full":
        found |= {
            "90 %, ERK": {**at_90, **erk},
            "90 %, global": {**at_90, **together},
            "90 %, random": {**at_90, f"{PRUNING}method": "random"},
            "90 %, SNIP": {**at_once, **together, f"{PRUNING}method": "saliency"},
            "90 %, RigL": {**at_once, **erk, f"{PRUNING}method": "rigl"},
        }
    small = {f"width for {100 * s:g} %": w for s, w in SMALL[scale].items()}
    found |= {n: {**longer, "model.width_multiplier": w} for n, w in small.items()}
    found["dense, from scratch"] = longer
    return found | {
        f"{100 * s:g} %, from scratch": {**anew, f"{PRUNING}sparsity": s}
        for s in SPARSITIES[scale]
        if s > 0.5
    }


def baselines(arg=""):
    """Variant -> its baseline: dense weights, or the variant with as many weights."""
    found = {}
    for name in variants(arg):
        if name.startswith("width"):
            found[name] = name.removeprefix("width for ")
        elif name.endswith("%, from scratch"):
            found[name] = f"width for {name.removesuffix(', from scratch')}"
        elif not name.startswith("dense"):
            found[name] = "dense"
    return found
