"""Expansion ratio. Asks: how does accuracy depend on t?

Sandler et al. 2018, arXiv 1801.04381, section 4: ratios of 5 to 10 give nearly the same curve of
accuracy over cost. At one width a larger t costs more. So the claim is judged on a narrower network
with t = 10, which has the MACs of t = 6 within 10 % (channels come in steps of 8).

Claims: expansion_5_to_10
Run:    mobilenet sweep --config=experiments/ablations/expansion.py --workdir=runs/expansion
        mobilenet reproduce expansion_5_to_10 --scale=full --workdir=runs/reproduce
Cost:   cifar: 18 runs of 5 min on 2 CPU cores
Result: experiments/results/ablations.csv
"""

from mobilenet.sweep import scales

# Width at which t = 10 costs what t = 6 costs at the scale's own width.
EQUAL_MACS_WIDTH = {"smoke": 0.12, "cifar": 0.25, "full": 0.74, "imagenet": 0.74}


def get_config(arg=""):
    return scales.base(arg)


def variants(arg=""):
    """Name of a variant -> what it overrides; every stage but the first has the ratio."""
    scale = scales.name_of(arg)
    ratios = {"smoke": (6,), "cifar": (1, 2, 4, 6, 10)}.get(scale, range(1, 11))
    # t = 6 is the block table's: left alone, that variant is the baseline of all ablations.
    at_one_width = {
        f"t = {t}": {} if t == 6 else {"model.expansion_ratio": float(t)} for t in ratios
    }
    narrower = {
        "model.expansion_ratio": 10.0,
        "model.width_multiplier": EQUAL_MACS_WIDTH[scale],
    }
    return {**at_one_width, "t = 10, narrower": narrower}


def comparisons():
    """Claim -> the two variants whose difference it says is small."""
    return {"expansion_5_to_10": ("t = 10, narrower", "t = 6")}
