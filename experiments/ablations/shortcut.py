"""Shortcuts. Asks: which layers should shortcuts connect?

Sandler et al. 2018, arXiv 1801.04381, Fig. 6b and section 6.4: shortcuts between bottlenecks are
better than shortcuts between expanded layers.

Claims: fig6b_expansion, fig6b_none
Run:    mobilenet sweep --config=experiments/ablations/shortcut.py --workdir=runs/shortcut
        mobilenet reproduce fig6b_expansion --scale=full --workdir=runs/reproduce
Cost:   cifar: 9 runs of 5 min on 2 CPU cores
Result: experiments/results/ablations.csv
"""

from mobilenet.sweep import scales


def get_config(arg=""):
    return scales.base(arg)


def variants():
    """Name of a variant -> what it overrides."""
    return {
        "between bottlenecks": {"model.shortcut": "bottleneck"},
        "between expansions": {"model.shortcut": "expansion"},
        "none": {"model.shortcut": "none"},
    }


def comparisons():
    """Claim -> the variant that it says is better, and the variant that it is compared with."""
    return {
        "fig6b_expansion": ("between bottlenecks", "between expansions"),
        "fig6b_none": ("between expansions", "none"),
    }
