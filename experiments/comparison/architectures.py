"""Networks. Asks: how do networks of equal MACs compare?

MobileNetV2, MobileNetV1 (arXiv 1704.04861), MobileNetV3 (1905.02244) and ResNet (1512.03385) on
CIFAR-10. The width multiplier brings each to a budget of MACs (within 10 %); ResNet-18 also runs as
published. All have a stem of stride 1 and end in maps of an eighth of the image's side, as in
experiments/baselines/cifar10.py.

One recipe trains all: that of the public CIFAR ports of MobileNetV2. It was fixed before anything
was measured and tuned for none. A network may do better with its own recipe; the comparison shows
what this one makes of them.

    full     CIFAR-10 at 32 pixels, 200 epochs, both budgets: for a GPU
    cifar    5,000 images at 24 pixels, 8 epochs, the smaller budget: minutes a run on two cores
    smoke    two steps on the embedded digits

Run:    mobilenet sweep --config=experiments/comparison/architectures.py --workdir=runs/networks
        mobilenet sweep --config=experiments/comparison/architectures.py:cifar \
            --workdir=runs/networks_cifar --config.data.data_dir=DIRECTORY_OF_TFDS
        mobilenet compare --workdir=runs/networks_cifar
Cost:   cifar: 12 runs of 4 min on 2 CPU cores
Result: experiments/results/comparison.csv
"""

from mobilenet import config as base
from mobilenet.sweep import scales

# Strides of the stages; they multiply to 8 after a stem of stride 1.
STAGE_STRIDES = {
    "mobilenet_v1": (1, 1, 2, 2, 2),
    "mobilenet_v2": (1, 1, 2, 2, 1, 2, 1),
    "mobilenet_v3_small": (1, 2, 2, 1, 2),
    "mobilenet_v3_large": (1, 1, 2, 2, 1, 2),
    "resnet18": (1, 2, 2, 2),
}
# Budget -> networks and widths. MACs are those of 32 pixels; at 24 all have 9 / 16 of them.
BUDGETS = {
    "28 M": (
        ("MobileNetV2 0.5", "mobilenet_v2", 0.5),
        ("MobileNetV1 0.39", "mobilenet_v1", 0.39),
        ("MobileNetV3-small 1.2", "mobilenet_v3_small", 1.2),
        ("ResNet-18 0.21", "resnet18", 0.21),
    ),
    "88 M": (
        ("MobileNetV2 1.0", "mobilenet_v2", 1.0),
        ("MobileNetV1 0.7", "mobilenet_v1", 0.7),
        ("MobileNetV3-large 1.15", "mobilenet_v3_large", 1.15),
        ("ResNet-18 0.4", "resnet18", 0.4),
    ),
    "as published": (("ResNet-18 1.0", "resnet18", 1.0),),
}
# Scale -> budgets.
SCALES = {"full": tuple(BUDGETS), "cifar": ("28 M",), "smoke": ("28 M",)}


def get_config(arg=""):
    scale = scales.name_of(arg, SCALES)
    config = scales.base("full")
    config.model.name = "mobilenet_v1"
    config.model.width_multiplier = 0.39
    config.model.stage_strides = STAGE_STRIDES["mobilenet_v1"]
    if scale == "cifar":
        config.data.image_size = 24
        config.data.train_examples = 5000
        config.train.global_batch_size = 64
        config.train.num_epochs = 8.0
        config.schedule.warmup_epochs = 1.0
        config.eval.every_epochs = 0.0
        config.log.every_steps = 50
    return base.shrink(config) if scale == "smoke" else config


def variants(arg=""):
    """Name of a variant -> what it overrides."""
    scale = scales.name_of(arg, SCALES)
    return {
        label: {
            "model.name": name,
            "model.width_multiplier": min(width, 0.25) if scale == "smoke" else width,
            "model.stage_strides": STAGE_STRIDES[name],
        }
        for budget in SCALES[scale]
        for label, name, width in BUDGETS[budget]
    }
