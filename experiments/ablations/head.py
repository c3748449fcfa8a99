"""The last 1x1 convolution. Asks: should a narrow network keep a wide head?

Sandler et al. 2018, arXiv 1801.04381, section 4: a width multiplier below 1 is applied to all
layers but the last convolution, which keeps its 1280 channels; this improves small networks.

Claims: head
Run:    mobilenet sweep --config=experiments/ablations/head.py --workdir=runs/head
        mobilenet reproduce head --scale=full --workdir=runs/reproduce
Cost:   cifar: 12 runs of minutes on 2 CPU cores
Result: not run by this project yet
"""

from mobilenet.sweep import scales


def get_config(arg=""):
    return scales.base(arg)


def variants(arg=""):
    """Name of a variant -> what it overrides."""
    widths = (0.25,) if scales.name_of(arg) == "smoke" else (0.35, 0.5)
    return {
        f"width {width}, head {word}": {
            "model.width_multiplier": width,
            "model.shrink_head": word == "thinned",
        }
        for width in widths
        for word in ("kept", "thinned")
    }


def comparisons(arg=""):
    """Claim -> the variant that it says is better, and the variant that it is compared with."""
    kept, thinned = list(variants(arg))[:2]  # of the narrowest network
    return {"head": (kept, thinned)}
