"""Linear bottlenecks. Asks: does a ReLU6 after the projection hurt?

Sandler et al. 2018, arXiv 1801.04381, Fig. 6a and sections 3.2 and 6.4: accuracy is higher without
a non-linearity there.

Claims: fig6a
Run:    mobilenet sweep --config=experiments/ablations/bottleneck.py --workdir=runs/bottleneck
        mobilenet reproduce fig6a --scale=full --workdir=runs/reproduce
Cost:   cifar: 6 runs of 5 min on 2 CPU cores
Result: experiments/results/ablations.csv
"""

from mobilenet.sweep import scales


def get_config(arg=""):
    return scales.base(arg)


def variants():
    """Name of a variant -> what it overrides; the paper's network is the ablations' baseline."""
    return {
        "linear": {"model.bottleneck_activation": "identity"},
        "ReLU6": {"model.bottleneck_activation": "relu6"},
    }


def comparisons():
    """Claim -> the variant that it says is better, and the variant that it is compared with."""
    return {"fig6a": ("linear", "ReLU6")}
