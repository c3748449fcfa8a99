"""Bits. Asks: what do fewer bits cost?

Post-training quantisation (PTQ) rounds a finished network. Quantisation-aware training (QAT)
continues from it with the rounding in place: with the running extremes of tensors (Jacob et al.
2017, arXiv 1712.05877) or with learned steps (LSQ, Esser et al. 2019, 1902.08153). All variants
start from one float parent and see the same images. The first layer and the classifier have the
bits of the others.

    full     CIFAR-10 at 32 pixels, 20 epochs after the parent's: for a GPU
    cifar    a slice of it and a narrow network, 2 epochs: a minute a run on two cores
    smoke    two steps on the embedded digits

Parent: mobilenet train --config=experiments/ablations/squeeze_excite.py:cifar --workdir=runs/parent
Run:    mobilenet sweep --config=experiments/quantization/bits.py:cifar --workdir=runs/bits \
            --config.pretrained=runs/parent
Cost:   cifar: 40 runs of 1.6 min on 2 CPU cores, after 1 parent
Result: experiments/results/quantization.csv
"""

from mobilenet.sweep import scales

BITS = ((8, 8), (4, 8), (3, 8), (2, 8), (8, 4), (4, 4))
FEWER = ((8, 8), (4, 8), (2, 8), (4, 4))  # where every run takes a minute on two cores
# With few bits, ranges minimise the squared error of rounding and clipping.
LEAST_ERROR = {
    "quantize.weights.ranges": "fixed",
    "quantize.weights.estimator": "mse",
    "quantize.activations.estimator": "mse",
}
ADAROUND = {"quantize.adaround_steps": 2000}
LSQ = {
    "quantize.weights.ranges": "lsq",
    "quantize.activations.ranges": "lsq_plus",
}


def get_config(arg=""):
    return scales.quantized(arg)


def variants(arg=""):
    """Name of a variant -> what it overrides."""
    found = {"float": {"train.num_epochs": 0.0}, "float, trained on": {}}
    for weights, activations in FEWER if scales.name_of(arg) == "cifar" else BITS:
        name = f"w{weights}a{activations}"
        bits = {"quantize.weights.bits": weights, "quantize.activations.bits": activations}
        ptq = {"train.num_epochs": 0.0, **bits}
        found |= {
            f"PTQ {name}, extremes": ptq,
            f"PTQ {name}, least error": {**ptq, **LEAST_ERROR},
            f"PTQ {name}, AdaRound": {**ptq, **LEAST_ERROR, **ADAROUND},
            f"QAT {name}, extremes": bits,
            f"QAT {name}, LSQ": {**bits, **LEAST_ERROR, **LSQ},
        }
    if scales.name_of(arg) == "smoke":  # without a parent there is nothing to round
        return {
            name: variant for name, variant in found.items() if "train.num_epochs" not in variant
        }
    return found


def baselines(arg=""):
    """Variant -> its baseline: float weights, learned steps against extremes."""
    found = {}
    for name in variants(arg):
        if name.startswith("PTQ"):
            found[name] = "float"
        elif name.startswith("QAT"):
            found[name] = "float, trained on"
            if name.endswith("LSQ"):
                found[name] = name.replace("LSQ", "extremes")
    return {name: other for name, other in found.items() if other in variants(arg)}
