"""Eight bits. Asks: one scale per channel or per tensor?

The rows of Krishnamoorthi 2018 (arXiv 1806.08342, tables 2 to 4) for a network that can be trained
here: weights alone, and weights with activations, after training and during it. The same for
ImageNet weights, without training, is experiments/quantization/imagenet.py.

    full     CIFAR-10 at 32 pixels, 20 epochs after the parent's: for a GPU
    cifar    a slice of it and a narrow network, 2 epochs: a minute a run on two cores
    smoke    two steps on the embedded digits

Parent: mobilenet train --config=experiments/ablations/squeeze_excite.py:cifar --workdir=runs/parent
Run:    mobilenet sweep --config=experiments/quantization/granularity.py:cifar \
            --workdir=runs/granularity --config.pretrained=runs/parent
Cost:   cifar: 24 runs of 1.2 min on 2 CPU cores, after 1 parent
Result: experiments/results/quantization.csv
"""

from mobilenet.sweep import scales

W8 = {"quantize.weights.bits": 8}
W8A8 = {**W8, "quantize.activations.bits": 8}
GRIDS = {
    "channel": {},
    "channel, affine": {"quantize.weights.symmetric": False},
    "tensor": {"quantize.weights.per_channel": False},
    "tensor, affine": {
        "quantize.weights.per_channel": False,
        "quantize.weights.symmetric": False,
    },
}


def get_config(arg=""):
    return scales.quantized(arg)


def variants(arg=""):
    """Name of a variant -> what it overrides."""
    trained = {f"QAT w8a8, {name}": {**W8A8, **grid} for name, grid in GRIDS.items()}
    if scales.name_of(arg) == "smoke":  # without a parent there is nothing to round
        return trained
    as_it_is = {"train.num_epochs": 0.0}
    return {
        "float": as_it_is,
        "float, trained on": {},
        **{f"PTQ w8, {name}": {**as_it_is, **W8, **grid} for name, grid in GRIDS.items()},
        **{f"PTQ w8a8, {name}": {**as_it_is, **W8A8, **grid} for name, grid in GRIDS.items()},
        **trained,
    }


def baselines(arg=""):
    """Variant -> float weights, trained on for as long."""
    named = variants(arg)
    found = {
        name: "float, trained on" if name.startswith("QAT") else "float"
        for name in named
        if not name.startswith("float")
    }
    return {name: other for name, other in found.items() if other in named}
