"""Width and resolution. Asks: what do width and resolution buy?

Sandler et al. 2018, arXiv 1801.04381, Fig. 5 and section 4: accuracy rises with both, from width
0.35 at 96 pixels to width 1.4 at 224.

Claims: fig5_width, fig5_resolution
Run:    mobilenet sweep --config=experiments/ablations/width_resolution.py --workdir=runs/fig5
        mobilenet reproduce fig5_width --scale=full --workdir=runs/reproduce
Cost:   cifar: 18 runs of minutes on 2 CPU cores
Result: not run by this project yet
"""

from mobilenet.sweep import scales

# Widths, and sides of the image in pixels; both rise.
GRID = {
    "smoke": ((0.2, 0.25), (24, 32)),
    "cifar": ((0.25, 0.35, 0.5), (16, 24)),
    "full": ((0.35, 0.5, 0.75, 1.0), (16, 24, 32)),
    "imagenet": ((0.35, 0.5, 0.75, 1.0, 1.4), (96, 128, 160, 192, 224)),
}


def get_config(arg=""):
    return scales.base(arg)


def _name(width, size):
    return f"width {width}, {size} px"


def variants(arg=""):
    """Name of a variant -> what it overrides."""
    widths, sizes = GRID[scales.name_of(arg)]
    return {
        _name(width, size): {"model.width_multiplier": width, "data.image_size": size}
        for width in widths
        for size in sizes
        if width <= 1.0 or size == sizes[-1]  # Fig. 5 has 1.4 at the full resolution alone
    }


def comparisons(arg=""):
    """Claim -> the variant that it says is better, and the variant that it is compared with."""
    widths, sizes = GRID[scales.name_of(arg)]
    large, small = widths[-1], widths[0]
    width = scales.base(arg).model.width_multiplier
    return {
        "fig5_width": (_name(large, sizes[-1]), _name(small, sizes[-1])),
        "fig5_resolution": (_name(width, sizes[-1]), _name(width, sizes[0])),
    }
