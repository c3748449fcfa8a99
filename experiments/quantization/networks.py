"""Networks and bits. Asks: which networks lose most at 4 bits?

Sandler et al. 2018 (arXiv 1801.04381, section 3.2) chose ReLU6 for low-precision arithmetic. It is
compared with ReLU, with squeeze-and-excitation, and with narrower and wider networks. Each network
is trained in float with one recipe, rounded to 8 and 4 bits as it is, and trained on with 4 bits
for weights and activations. The baseline is its own float run, trained on as long.

    full     CIFAR-10 at 32 pixels, 20 epochs after 200: for a GPU
    cifar    5,000 images at 24 pixels, 2 epochs after 8: minutes a run on two cores
    smoke    two steps on the embedded digits

Run:    T="mobilenet train --config=experiments/ablations/squeeze_excite.py:cifar \
            --config.data.data_dir=DIRECTORY_OF_TFDS --workdir"
        $T=runs/relu6; $T=runs/relu --config.model.activation=relu
        $T=runs/se --config.model.se_ratio=0.25
        $T=runs/w0.2 --config.model.width_multiplier=0.2
        $T=runs/w0.5 --config.model.width_multiplier=0.5
        mobilenet sweep --config=experiments/quantization/networks.py:cifar \
            --workdir=runs/networks --config.data.data_dir=DIRECTORY_OF_TFDS
Cost:   cifar: 40 runs of 1.3 min on 2 CPU cores, after 5 parents
Result: experiments/results/quantization.csv
"""

from mobilenet import config as base
from mobilenet.sweep import scales

NETWORKS = {
    "ReLU6": "runs/relu6",
    "ReLU": "runs/relu",
    "SE": "runs/se",
    "width 0.2": "runs/w0.2",
    "width 0.5": "runs/w0.5",
}
W8A8 = {"quantize.weights.bits": 8, "quantize.activations.bits": 8}
W4A4 = {"quantize.weights.bits": 4, "quantize.activations.bits": 4}


def get_config(arg=""):
    config = scales.quantized(arg)
    config.pretrained = ""  # every variant has its own, and a network comes with its weights
    base.unset(config, "model.width_multiplier")
    return config


def variants(arg=""):
    """Name of a variant -> what it overrides."""
    if scales.name_of(arg) == "smoke":
        return {"w4a4": W4A4}  # from scratch
    as_it_is, found = {"train.num_epochs": 0.0}, {}
    for name, parent in NETWORKS.items():
        start = {"pretrained": parent}
        found |= {
            f"{name}, float": {**start},
            f"{name}, PTQ w8a8": {**start, **as_it_is, **W8A8},
            f"{name}, PTQ w4a4": {**start, **as_it_is, **W4A4},
            f"{name}, QAT w4a4": {**start, **W4A4},
        }
    return found


def baselines(arg=""):
    """Variant -> its float network."""
    named = variants(arg)
    found = {name: f"{name.partition(', ')[0]}, float" for name in named}
    return {name: other for name, other in found.items() if name != other and other in named}
