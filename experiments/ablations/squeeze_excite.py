"""Squeeze-and-excitation. Asks: how much does squeeze-and-excitation add?

Published for ImageNet: 72.3 without, 73.5 with a squeeze width of a quarter of the block's input in
all 17 bottlenecks (Hou et al. 2021, arXiv 2103.02907; README of houqb/CoordAttention).

Claims: se
Run:    mobilenet sweep --config=experiments/ablations/squeeze_excite.py --workdir=runs/se
        mobilenet reproduce se --scale=full --workdir=runs/reproduce
Cost:   cifar: 6 runs of 5 min on 2 CPU cores
Result: experiments/results/ablations.csv
"""

from mobilenet.sweep import scales


def get_config(arg=""):
    return scales.base(arg)


def variants():
    """Name of a variant -> what it overrides."""
    return {
        "SE": {"model.se_ratio": 0.25, "model.se_base": "input"},
        "without": {},
    }


def comparisons():
    """Claim -> the variant that it says is better, and the variant that it is compared with."""
    return {"se": ("SE", "without")}
