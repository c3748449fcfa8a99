"""Mixed precision. Asks: should sensitive layers have more bits?

Weights have 4 or 3 bits on average: the same number in every layer, or chosen per layer. The choice
is made by what each layer loses alone at 2, 3, 4 and 8 bits: the divergence of the outputs on 500
validation images (Cai et al. 2020, arXiv 2001.00281). Activations have 8 bits. The networks are
rounded as they are, and at 3 bits also trained on.

    full     CIFAR-10 at 32 pixels, 20 epochs after 200: for a GPU, with choices of its own
    cifar    5,000 images at 24 pixels, 2 epochs after 8: minutes a run on two cores
    smoke    two steps on the embedded digits

Parent: mobilenet train --config=experiments/ablations/squeeze_excite.py:cifar --workdir=runs/parent
Choice: mobilenet quantize --workdir=runs/parent --to=runs/w8a8
        mobilenet quantize --workdir=runs/w8a8 --sensitivity=2,3,4,8 --examples=500 --budget=4,3
Run:    mobilenet sweep --config=experiments/quantization/mixed.py:cifar --workdir=runs/mixed \
            --config.pretrained=runs/parent
Cost:   cifar: 10 runs of 1 min on 2 CPU cores, after 1 parent
Result: experiments/results/quantization.csv
"""

from mobilenet.sweep import scales

# Mean bits -> bits -> layers, as --budget printed them for the network of "cifar"; others have 8.
CHOSEN = {
    4: {
        4: (
            *("blocks_3_1/expand", "blocks_4_0/expand", "blocks_4_1/expand"),
            *("blocks_4_1/depthwise", "blocks_4_1/project", "blocks_5_0/expand"),
            *("blocks_5_0/depthwise", "blocks_5_0/project", "blocks_5_1/depthwise"),
            *("blocks_5_1/project", "blocks_6_0/expand", "blocks_6_0/depthwise", "classifier"),
        ),
        3: ("blocks_5_1/expand", "blocks_6_0/project", "head"),
    },
    3: {
        4: (
            *("blocks_2_1/expand", "blocks_2_1/depthwise", "blocks_2_1/project"),
            *("blocks_3_0/expand", "blocks_3_0/depthwise", "blocks_3_0/project"),
            *("blocks_3_1/expand", "blocks_3_1/depthwise", "blocks_3_1/project"),
            *("blocks_4_0/expand", "blocks_4_0/depthwise", "blocks_4_0/project"),
            *("blocks_4_1/project", "blocks_5_0/depthwise", "blocks_6_0/depthwise"),
        ),
        3: (
            *("blocks_4_1/expand", "blocks_4_1/depthwise", "blocks_5_0/expand"),
            *("blocks_5_0/project", "blocks_5_1/depthwise", "blocks_5_1/project"),
            *("blocks_6_0/expand", "blocks_6_0/project", "classifier"),
        ),
        2: ("blocks_5_1/expand", "head"),
    },
}
A8 = {"quantize.activations.bits": 8}


def get_config(arg=""):
    return scales.quantized(arg)


def rules(mean):
    """Rows of quantize.rules for a mean number of bits."""
    return tuple(
        (f"{layer}/weights" if layer == "classifier" else f"{layer}/conv/weights", f"bits={bits}")
        for bits, layers in CHOSEN[mean].items()
        for layer in layers
    )


def variants(arg=""):
    """Name of a variant -> what it overrides."""
    uniform = {mean: {**A8, "quantize.weights.bits": mean} for mean in CHOSEN}
    if scales.name_of(arg) != "cifar":  # choices are of one network
        return {"QAT, 3 bits": uniform[3]}
    mixed = {
        mean: {**A8, "quantize.weights.bits": 8, "quantize.rules": rules(mean)} for mean in CHOSEN
    }
    as_it_is = {"train.num_epochs": 0.0}
    return {
        **{f"PTQ, {mean} bits": {**as_it_is, **uniform[mean]} for mean in CHOSEN},
        **{f"PTQ, mixed, {mean} bits": {**as_it_is, **mixed[mean]} for mean in CHOSEN},
        "QAT, 3 bits": uniform[3],
        "QAT, mixed, 3 bits": mixed[3],
    }


def baselines(arg=""):
    """Variant -> the one with the same bits everywhere."""
    return {name: name.replace("mixed, ", "") for name in variants(arg) if "mixed" in name}
