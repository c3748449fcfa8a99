"""Sizes at which an experiment runs, from seconds on a laptop to days on a GPU: SCALES.

An experiment file gets the scale as its argument: `file.py:cifar`; without one it is "full". All
ablations of one scale start from one configuration, so that a sweep trains their common baseline
once. The recipe is fixed before anything is measured, and it is the same for every variant.
"""

from collections.abc import Iterable
from typing import Any

from mobilenet import config as config_lib
from mobilenet.config import Config, ConfigError

# Scale -> what runs at it. This is the one list of them.
SCALES = {
    "smoke": "two steps on the embedded digits: whether everything works",
    "cifar": "a slice of CIFAR-10 and a small network, minutes a run on two CPU cores",
    "full": "the whole experiment, on CIFAR-10 with 200 epochs: for a GPU",
    "imagenet": "ImageNet, 150 epochs: for several GPUs",
}

# Rows of Table 2 at "cifar": two bottlenecks in most stages, so that there are five shortcuts of
# either kind (Fig. 6b), and one in the two stages that work on the largest maps.
CIFAR_REPEATS = (1, 1, 2, 2, 2, 2, 1)
# Of a dense network's compression, which ends before the smoke form's single epoch does.
EPOCHS_AFTER_DENSE = {"full": 50.0, "cifar": 3.0, "smoke": 0.5}


def name_of(arg: str, allowed: Iterable[str] = SCALES) -> str:
    """The scale that an experiment file's argument names: "" is "full".

    Args:
      arg: of an experiment file.
      allowed: the scales that the experiment has.

    Raises:
      ConfigError: another argument than those allowed.
    """
    if arg not in ("", *allowed):
        raise ConfigError(f"The scale {arg!r} is not one of this experiment:\n{explain(allowed)}")
    return arg or "full"


def explain(names: Iterable[str] = SCALES) -> str:
    """Scales with their meaning, a line for each, indented: for messages and help."""
    names = list(names)
    width = max(map(len, names))
    return "\n".join(f"  {name:<{width}}  {SCALES[name]}" for name in SCALES if name in names)


def base(arg: str = "", allowed: Iterable[str] = SCALES) -> Config:
    """The configuration that all ablations of one scale share.

    Args:
      arg: of an experiment file: "", which is "full", or one of SCALES.
      allowed: the scales that the experiment has.

    Raises:
      ConfigError: another argument.
    """
    scale = name_of(arg, allowed)
    config = config_lib.get_config()
    config.model.padding = "SYMMETRIC"
    config.model.bn_momentum = 0.9
    config.model.bn_epsilon = 1e-5
    if scale == "imagenet":
        _imagenet(config)
        return config
    _cifar10(config)
    if scale == "cifar":
        _slice(config)
    return config_lib.shrink(config) if scale == "smoke" else config


def quantized(arg: str = "") -> Config:
    """`base` for runs that continue from a float network with rounding: short, a tenth of its rate.

    `pretrained` is runs/parent. The smoke form has no parent and starts from scratch.
    """
    config = base(arg)
    scale = name_of(arg)
    config.pretrained = "" if scale == "smoke" else "runs/parent"
    config.optimizer.learning_rate = 0.02
    config.schedule.warmup_epochs = 0.0
    config.train.num_epochs = {"full": 20.0, "cifar": 2.0, "imagenet": 5.0}.get(scale, 0.5)
    config.quantize.calibration_examples = 256
    config.eval.every_epochs = 0.0
    return config


def dense(arg: str = "", allowed: Iterable[str] = SCALES) -> Config:
    """`base` for the network that is compressed: a wide one, and more images at "cifar"."""
    config, scale = base(arg, allowed), name_of(arg, allowed)
    if scale == "cifar":
        config.model.width_multiplier = 0.5
        config.data.train_examples = 15_000
    return config


def compressing(arg: str = "", allowed: Iterable[str] = SCALES) -> dict[str, Any]:
    """Overrides of a run that continues from `dense` to compress it: at a quarter of its rate."""
    return {
        "optimizer.learning_rate": dense(arg, allowed).optimizer.learning_rate / 4,
        "schedule.warmup_epochs": 0.0,
        "train.num_epochs": EPOCHS_AFTER_DENSE[name_of(arg, allowed)],
    }


def as_long(arg: str = "", allowed: Iterable[str] = SCALES) -> dict[str, Any]:
    """Overrides of a run from scratch that lasts as long as `dense` and `compressing` together."""
    config, after = dense(arg, allowed), compressing(arg, allowed)
    return {"train.num_epochs": config.train.num_epochs + after["train.num_epochs"]}


def _cifar10(config: Config) -> None:
    """As experiments/baselines/cifar10.py."""
    config.model.stem_strides = 1
    config.model.stage_strides = (1, 1, 2, 2, 1, 2, 1)
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.augment.random_crop_padding = 4
    config.augment.horizontal_flip = True
    config.train.global_batch_size = 128
    config.train.num_epochs = 200.0
    config.optimizer.learning_rate = 0.2
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.eval.every_epochs = 5.0
    config.log.every_steps = 100


def _slice(config: Config) -> None:
    """The network and the data of `full`, small enough for minutes on a CPU."""
    config.model.blocks = tuple(
        (t, c, n, s) for (t, c, _, s), n in zip(config.model.blocks, CIFAR_REPEATS, strict=True)
    )
    config.model.width_multiplier = 0.35
    config.model.head_features = 320
    config.data.image_size = 24
    config.data.train_examples = 5000
    config.train.global_batch_size = 64
    config.train.num_epochs = 8.0
    config.schedule.warmup_epochs = 0.5
    config.eval.every_epochs = 0.0
    config.log.every_steps = 50


def _imagenet(config: Config) -> None:
    """As experiments/baselines/imagenet_cosine.py."""
    config.data.name = "imagenet2012"
    config.data.test_split = "validation"
    config.data.validation_fraction = 0.01
    config.data.image_size = 224
    config.data.crop_fraction = 0.875
    config.data.normalization = "imagenet"
    config.augment.random_resized_crop = True
    config.augment.crop_scale = (0.2, 1.0)
    config.augment.horizontal_flip = True
    config.train.global_batch_size = 256
    config.train.num_epochs = 150.0
    config.optimizer.learning_rate = 0.05
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 4e-5
    config.schedule.warmup_epochs = 1.0
    config.checkpoint.every_steps = 5000
