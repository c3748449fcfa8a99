"""Squeeze-and-excitation. Asks: what does it add to the inverted residual?

Published for ImageNet: 72.3 without, 73.5 with a squeeze width of a quarter of the block's input in
all 17 bottlenecks (Hou et al. 2021, arXiv 2103.02907; README of houqb/CoordAttention).

Claims: se
Run:    mobilenet sweep --config=experiments/ablations/squeeze_excite.py --workdir=runs/se
        mobilenet reproduce se --scale=full --workdir=runs/reproduce
Result: experiments/results/ablations.csv
"""

from mobilenet.sweep import scales
from mobilenet.sweep.space import product, seeds


def get_config(arg=""):
    return scales.base(arg)


def variants(arg=""):
    """Name of a variant -> what it overrides."""
    del arg  # the same at every scale
    return {
        "SE": {"model.se_ratio": 0.25, "model.se_base": "input"},
        "without": {},
    }


def comparisons(arg=""):
    """Claim -> the variant that it says is better, and the variant that it is compared with."""
    del arg
    return {"se": ("SE", "without")}


def sweep(arg=""):
    return product(list(variants(arg).values()), seeds(scales.seeds_at(arg)))
