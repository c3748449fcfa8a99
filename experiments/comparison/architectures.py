"""Networks. Asks: how does MobileNetV2 compare with its neighbours at nearly equal MACs?

MobileNetV1 (arXiv 1704.04861), MobileNetV3 (1905.02244) and ResNet (1512.03385) beside MobileNetV2
on CIFAR-10, each brought to a budget of MACs (within 10 %) by its width multiplier; ResNet-18 as
published too. All have a stem of stride 1 and end in maps of an eighth of the picture's side, as
experiments/baselines/cifar10.py has them.

One recipe trains all: that of the public CIFAR ports of MobileNetV2, fixed before anything was
measured and tuned for none. A network may do better with its own; what is compared is what this
recipe makes of them.

    (none)   CIFAR-10 at 32 pixels, 200 epochs, both budgets: for a GPU
    cpu      5,000 pictures at 24 pixels, 8 epochs, the smaller budget: minutes a run on two cores
    smoke    two steps on the embedded digits

Run:    mobilenet sweep --config=experiments/comparison/architectures.py --workdir=runs/networks
        mobilenet sweep --config=experiments/comparison/architectures.py:cpu \
            --workdir=runs/networks_cpu --config.data.data_dir=DIRECTORY_OF_TFDS
"""

from mobilenet import config as base
from mobilenet.sweep import scales
from mobilenet.sweep.space import product, seeds

# Strides of the stages that multiply to 8 behind a stem of stride 1.
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
SCALES = {"": tuple(BUDGETS), "cpu": ("28 M",), "smoke": ("28 M",)}


def _check(arg):
    if arg not in SCALES:
        raise base.ConfigError(
            f"The configuration argument is {arg!r}; allowed are none, 'cpu' and 'smoke'."
        )


def get_config(arg=""):
    _check(arg)
    config = scales.base("full")
    config.model.name = "mobilenet_v1"
    config.model.width_multiplier = 0.39
    config.model.stage_strides = STAGE_STRIDES["mobilenet_v1"]
    if arg == "cpu":
        config.data.image_size = 24
        config.data.train_examples = 5000
        config.train.global_batch_size = 64
        config.train.num_epochs = 8.0
        config.schedule.warmup_epochs = 1.0
        config.eval.every_epochs = 0.0
        config.log.every_steps = 50
    return base.shrink(config) if arg == "smoke" else config


def variants(arg=""):
    """Name of a variant -> what it overrides."""
    _check(arg)
    return {
        label: {
            "model.name": name,
            "model.width_multiplier": min(width, 0.25) if arg == "smoke" else width,
            "model.stage_strides": STAGE_STRIDES[name],
        }
        for budget in SCALES[arg]
        for label, name, width in BUDGETS[budget]
    }


def sweep(arg=""):
    return product(list(variants(arg).values()), seeds(2 if arg == "smoke" else 3))
