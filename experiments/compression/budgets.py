"""A part of the MACs. Asks: cut, train narrow, use a teacher, or both?

`mobilenet shrink` cuts a dense run of each seed to the MACs of a width multiplier, and the cut
network is trained on: 79 and 55 % of the MACs (at the full scale 76, 50 and 35). Next to each
stands the network of that width, trained for as many epochs as both parts together. At about half
the MACs both are also trained with a teacher (Hinton et al. 2015, arXiv 1503.02531): the dense
network, trained for as long. Published numbers of AMC (1802.03494), MetaPruning (1903.10258) and
slimmable networks (1812.08928) are in experiments/reference/compression.csv.

    full     CIFAR-10 at 32 pixels, width 1.0, 50 epochs after 200: for a GPU
    cifar    15,000 images at 24 pixels, width 0.5, 3 epochs after 8: minutes a run on two cores
    smoke    two steps on the embedded digits

Run:    for s in 0 1 2; do
            mobilenet train --config=experiments/compression/budgets.py:cifar \
                --workdir=runs/dense_$s --config.seed=$s --config.data.data_dir=DIRECTORY_OF_TFDS
            for m in 0.79 0.547; do
                mobilenet shrink --workdir=runs/dense_$s --macs=$m --to=runs/cut_${m}_$s
            done
            mobilenet train --config=experiments/compression/budgets.py:cifar \
                --workdir=runs/teacher_$s --config.seed=$s --config.train.num_epochs=11 \
                --config.data.data_dir=DIRECTORY_OF_TFDS
        done
        mobilenet sweep --config=experiments/compression/budgets.py:cifar \
            --workdir=runs/compression --config.data.data_dir=DIRECTORY_OF_TFDS
        mobilenet compare --workdir=runs/compression
Cost:   cifar: 21 runs of 3 min on 2 CPU cores, after 6 parents
Result: experiments/results/compression.csv
"""

from mobilenet.sweep import scales

SCALES = ("full", "cifar", "smoke")
# Fraction of the MACs -> the width multiplier of that cost.
WIDTHS = {
    "full": {0.757: 0.82, 0.499: 0.64, 0.353: 0.55},
    "cifar": {0.79: 0.38, 0.547: 0.28},
    "smoke": {0.79: 0.14},
}
TAUGHT = (0.499, 0.547)
DISTILLATION = {
    "compress.distillation.teacher": "runs/teacher_{seed}",
    "compress.distillation.temperature": 4.0,
    "compress.distillation.weight": 0.9,
}


def get_config(arg=""):
    """The dense run, which is cut afterwards."""
    return scales.dense(arg, SCALES)


def variants(arg=""):
    """Name of a variant -> what it overrides."""
    if arg == "smoke":  # there is no run to cut, and no teacher
        narrow = {f"narrow, {100 * m:.0f} %": w for m, w in WIDTHS[arg].items()}
        return {
            "dense, longer": {},
            **{name: {"model.width_multiplier": width} for name, width in narrow.items()},
        }
    longer = scales.as_long(arg, SCALES)
    after = scales.compressing(arg, SCALES)
    found = {"dense, longer": longer}
    for macs, width in WIDTHS[scales.name_of(arg, SCALES)].items():
        name = f"{100 * macs:.0f} %"
        narrow = {**longer, "model.width_multiplier": width}
        cut = {**after, "pretrained": f"runs/cut_{macs:g}_{{seed}}"}
        found |= {f"narrow, {name}": narrow, f"cut, {name}": cut}
        if macs in TAUGHT:
            found[f"narrow, taught, {name}"] = {**narrow, **DISTILLATION}
            found[f"cut, taught, {name}"] = {**cut, **DISTILLATION}
    return found


def baselines(arg=""):
    """Variant -> its baseline: the narrow network, and the same one without a teacher."""
    found = {}
    for name in variants(arg):
        if name.startswith("narrow") and "taught" not in name:
            found[name] = "dense, longer"
        elif "taught" in name:
            found[name] = name.replace("taught, ", "")
        elif name.startswith("cut"):
            found[name] = name.replace("cut", "narrow")
    return found
