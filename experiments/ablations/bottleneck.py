"""Linear bottlenecks. Asks: does a ReLU6 after the projection cost accuracy?

Sandler et al. 2018, arXiv 1801.04381, Fig. 6a and sections 3.2 and 6.4: without a non-linearity
there, accuracy is higher.

Claims: fig6a
Run:    mobilenet sweep --config=experiments/ablations/bottleneck.py --workdir=runs/bottleneck
        mobilenet reproduce fig6a --scale=full --workdir=runs/reproduce
Result: experiments/results/ablations.csv
"""

from mobilenet.sweep import scales
from mobilenet.sweep.space import product, seeds


def get_config(arg=""):
    return scales.base(arg)


def variants(arg=""):
    """Name of a variant -> what it overrides; the paper's network is the ablations' baseline."""
    del arg  # the same at every scale
    return {
        "linear": {"model.bottleneck_activation": "identity"},
        "ReLU6": {"model.bottleneck_activation": "relu6"},
    }


def comparisons(arg=""):
    """Claim -> the variant that it says is better, and the variant that it is compared with."""
    del arg
    return {"fig6a": ("linear", "ReLU6")}


def sweep(arg=""):
    return product(list(variants(arg).values()), seeds(scales.seeds_at(arg)))
