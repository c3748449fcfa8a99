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


def arms(arg=""):
    """Name of an arm -> what it overrides; the paper's network is the baseline of all ablations."""
    del arg  # the same at every scale
    return {
        "linear": {"model.bottleneck_activation": "identity"},
        "ReLU6": {"model.bottleneck_activation": "relu6"},
    }


def contrasts(arg=""):
    """Claim -> the arm that it says is better, and the arm that it is compared with."""
    del arg
    return {"fig6a": ("linear", "ReLU6")}


def sweep(arg=""):
    return product(list(arms(arg).values()), seeds(scales.seeds_at(arg)))
