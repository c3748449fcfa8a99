"""The base configuration: all keys with defaults, and `validate`, which refuses what cannot run.

`mobilenet.keys` says what each key means, and `mobilenet config` prints it.

An experiment file starts from `get_config()` and changes values; keys are locked, so a misspelt one
is an error. Values are plain (numbers, strings, booleans, tuples), so a configuration survives JSON
unchanged: `to_json` and `from_json` are inverses.
"""

import hashlib
import json
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import ml_collections
from ml_collections.config_dict import placeholder

from mobilenet import keys, settings
from mobilenet.compress import rules as pruning_rules
from mobilenet.quantize import rules
from mobilenet.settings import ConfigError as ConfigError
from mobilenet.settings import ExperimentError as ExperimentError

# An `ml_collections.ConfigDict`; its attributes have no types that a checker could know.
Config: TypeAlias = Any


def was_set(config: Config, key: str) -> bool:
    """Whether a dotted key has been set: by an experiment file, an override, or a notebook.

    A value tells nothing about that: a key may be set to its default on purpose.
    """
    section, _, name = key.rpartition(".")
    return (config[section] if section else config).was_set(name)


def unset(config: Config, key: str) -> None:
    """Gives a dotted key its default back, in place, as if nobody had set it."""
    section, _, name = key.rpartition(".")
    default = dict(flatten(get_config()))[key]
    (config[section] if section else config).unset(name, default)


def get_config(arg: str = "") -> Config:
    """The base configuration: MobileNetV2 1.0 on the embedded digits.

    Args:
      arg: what follows the colon in `--config=file.py:arg`; "" or "smoke". The base is the same for
        both; experiment files shrink themselves for "smoke" with `shrink`.
    """
    if arg not in ("", "smoke"):
        raise ConfigError(f"The configuration argument is {arg!r}; allowed are none and 'smoke'.")
    config: Config = ml_collections.ConfigDict()
    config.seed = 0

    config.pretrained = ""
    config.finetune = finetune = ml_collections.ConfigDict()
    finetune.train_from = ""
    finetune.backbone_rate = 1.0
    finetune.batch_norm = "adapt"

    config.model = model = ml_collections.ConfigDict()
    model.name = "mobilenet_v2"
    model.width_multiplier = 1.0
    model.expansion_ratio = placeholder(object)
    model.expanded_features = ()
    model.blocks = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    model.stem_features = 32
    model.stem_strides = 2
    model.stage_strides = ()
    model.output_stride = placeholder(int)
    model.head_features = 1280
    model.shrink_head = False
    model.divisor = 8
    model.kernel_size = 3
    model.num_classes = placeholder(int)
    model.activation = "relu6"
    model.bottleneck_activation = "identity"
    model.shortcut = "bottleneck"
    model.shortcut_projection = False
    model.expand_always = False
    model.se_ratio = placeholder(float)
    model.se_base = "expanded"
    model.se_divisor = 1
    model.se_gate = "sigmoid"
    model.dropout_rate = 0.0
    model.padding = "SAME"
    model.bn_momentum = 0.99
    model.bn_epsilon = 1e-3
    model.bn_statistics = "sync"
    model.bn_group_size = 1
    model.initializer = "he_fan_out"
    model.dtype = "float32"
    model.conv_form = "auto"
    model.remat = False

    config.quantize = quantize = ml_collections.ConfigDict()
    quantize.weights = weights = ml_collections.ConfigDict()
    weights.bits = 0
    weights.symmetric = True
    weights.per_channel = True
    weights.estimator = "min_max"
    weights.ranges = "follow"
    quantize.activations = activations = ml_collections.ConfigDict()
    activations.bits = 0
    activations.symmetric = False
    activations.estimator = "min_max"
    activations.ranges = "observe"
    quantize.rules = ()
    quantize.calibration_examples = 512
    quantize.calibration_dir = ""
    quantize.percentile = 99.99
    quantize.fold = True
    quantize.equalize = False
    quantize.keep_relu6 = False
    quantize.absorb_bias = False
    quantize.correct_bias = "none"
    quantize.adaround_steps = 0
    quantize.observe_epochs = 0.0
    quantize.batch_norm_epochs = 0.0
    quantize.step_rate = 1.0

    config.compress = compress = ml_collections.ConfigDict()
    compress.pruning = pruning = ml_collections.ConfigDict()
    pruning.method = "none"
    pruning.sparsity = 0.0
    pruning.distribution = "uniform"
    pruning.pattern = "weights"
    pruning.schedule = "one_shot"
    pruning.start_epoch = 0.0
    pruning.end_epoch = 0.0
    pruning.every_steps = 100
    pruning.initial_sparsity = 0.0
    pruning.drop_fraction = 0.3
    pruning.rewind_epoch = placeholder(float)
    pruning.rules = ()

    compress.distillation = distillation = ml_collections.ConfigDict()
    distillation.teacher = ""
    distillation.weight = 0.9
    distillation.temperature = 4.0
    distillation.transfer = "none"
    distillation.transfer_weight = 1.0

    config.data = data = ml_collections.ConfigDict()
    data.name = "digits"
    data.data_dir = ""
    data.train_split = "train"
    data.test_split = "test"
    data.validation_split = ""
    data.validation_fraction = 0.1
    data.test_fraction = 0.2
    data.train_examples = 0
    data.image_size = 32
    data.channels = 3
    data.crop_fraction = 1.0
    data.normalization = "dataset"
    data.in_memory = "auto"
    data.num_workers = 0
    data.prefetch_batches = 2
    data.on_error = "raise"

    config.augment = augment = ml_collections.ConfigDict()
    augment.random_crop_padding = 0
    augment.random_resized_crop = False
    augment.crop_scale = (0.08, 1.0)
    augment.crop_ratio = (0.75, 4 / 3)
    augment.horizontal_flip = False
    augment.brightness = 0.0
    augment.contrast = 0.0
    augment.saturation = 0.0
    augment.hue = 0.0
    augment.randaugment_layers = 0
    augment.randaugment_magnitude = 9.0
    augment.random_erasing = 0.0
    augment.mixup_alpha = 0.0
    augment.cutmix_alpha = 0.0

    config.train = train = ml_collections.ConfigDict()
    train.global_batch_size = 128
    train.num_epochs = 10.0
    train.accumulation_steps = 1
    train.label_smoothing = 0.0
    train.best_by = "top1"
    train.patience = 0
    train.ema_decay = 0.0

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.name = "sgd"
    optimizer.learning_rate = 0.1
    optimizer.momentum = 0.9
    optimizer.nesterov = False
    optimizer.decay = 0.9
    optimizer.epsilon = 1.0
    optimizer.weight_decay = 4e-5
    optimizer.decay_depthwise = True
    optimizer.clip_norm = 0.0

    config.schedule = schedule = ml_collections.ConfigDict()
    schedule.name = "cosine"
    schedule.warmup_epochs = 0.0
    schedule.decay_rate = 0.98
    schedule.decay_epochs = 1.0
    schedule.staircase = True
    schedule.boundary_epochs = ()
    schedule.final_fraction = 0.0

    config.eval = evaluation = ml_collections.ConfigDict()
    evaluation.batch_size = 256
    evaluation.every_epochs = 1.0

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every_steps = 1000
    checkpoint.keep_newest = 2
    checkpoint.keep_best = 1

    config.log = log = ml_collections.ConfigDict()
    log.every_steps = 50
    log.tensorboard = True
    log.writers = ()

    return settings.checked(config)


def shrink(config: Config) -> Config:
    """Makes the smoke form of a configuration, in place: two steps of a small network.

    The network is narrow and has every row of MobileNetV2's block table once (other networks keep
    their depth); the data is 64 small images of the embedded digits. The rest of the experiment
    (strides, optimiser, schedule, augmentation) stays. The keys of the network do not count as set,
    so that weights given by `pretrained` bring their own.
    """
    model = config.model
    if model.name == "mobilenet_v2":
        model.unset("blocks", tuple((*row[:2], 1, row[3]) for row in model.blocks))
        model.unset("expanded_features", ())
    model.unset("width_multiplier", min(model.width_multiplier, 0.25))
    config.data.name = SMOKE_DATA
    config.data.data_dir = ""
    config.data.train_split = "train"
    config.data.test_split = "test"
    config.data.validation_split = ""
    config.data.validation_fraction = 0.1
    config.data.train_examples = 64
    config.data.image_size = 32
    config.data.num_workers = 0
    config.train.global_batch_size = 16
    config.train.num_epochs = 0.5  # 2 steps
    config.schedule.warmup_epochs = min(config.schedule.warmup_epochs, 0.25)
    config.train.accumulation_steps = 1
    config.eval.batch_size = 64
    pruning = config.compress.pruning
    pruning.start_epoch = min(pruning.start_epoch, 0.25)
    pruning.end_epoch = min(pruning.end_epoch, 0.25)
    pruning.every_steps = 1
    return config


SMOKE_DATA = "digits"


def keep_data(smoke: Config, full: Config) -> None:
    """Gives a smoke form the data of its experiment back, in place: a user says where they are.

    It still sees few and small images.

    Args:
      smoke: made by `shrink`; one with data of its own is left alone.
      full: the experiment's configuration without an argument.
    """
    if smoke.data.name != SMOKE_DATA or full.data.name == SMOKE_DATA:
        return
    for key in ("name", "data_dir", "train_split", "test_split", "validation_split"):
        smoke.data[key] = full.data[key]
    if smoke.data.test_fraction == 1.0:  # of an experiment that trains nothing; the smoke form does
        unset(smoke, "data.test_fraction")


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of every leaf."""
    for key, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_json(config: Config) -> str:
    """The configuration as JSON with sorted keys; equal configurations give equal text."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> Config:
    """Rebuilds a locked configuration from `to_json`, in which every key of the text is set.

    Keys that the text of an older version lacks have the values of LATER_KEYS, with which it
    computed; an unknown key is a ConfigError.
    """
    config = get_config()
    update(config, {**LATER_KEYS, **dict(flatten(json.loads(text)))})
    return config


def update(config: Config, overrides: Mapping[str, Any]) -> None:
    """Sets dotted keys in place.

    Another `model.name` takes the keys that describe the old network back to their defaults
    (`_leave_network`), except those that are set with it.

    Raises:
      ConfigError: an unknown key, with the nearest known one, or a value of another kind.
    """
    for key in overrides:
        config.kind(key)
    _leave_network(config, overrides)
    for key, value in overrides.items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value


def parse(config: Config, key: str, text: str) -> Any:
    """A value as a command line has it, as one of the key's kind; ConfigError as `update`."""
    return settings.parse(key, config.kind(key), text)


# Keys that change how a run is carried out but not what it computes; a resumed run may change them.
RUNTIME_KEYS = (
    "checkpoint.",
    "log.",
    "data.data_dir",
    "data.num_workers",
    "data.prefetch_batches",
    "eval.batch_size",
)


# What comes with pretrained weights: other values would make another network of them.
INHERITED = (
    *(f"model.{key}" for key in ("name", "width_multiplier", "expansion_ratio", "blocks")),
    "model.expanded_features",
    *(f"model.{key}" for key in ("stem_features", "head_features", "shrink_head", "divisor")),
    *(f"model.{key}" for key in ("kernel_size", "activation", "bottleneck_activation")),
    *(f"model.{key}" for key in ("shortcut", "shortcut_projection", "expand_always")),
    *(f"model.{key}" for key in ("se_ratio", "se_base", "se_divisor", "se_gate")),
    *(f"model.{key}" for key in ("padding", "bn_epsilon")),
    "data.channels",
)
# What comes with them unless it is set: the same weights compute with other strides too.
INHERITED_STRIDES = ("model.stem_strides", "model.stage_strides", "model.output_stride")


def inherit(config: Config, source: Config) -> None:
    """Takes over, in place, what comes with the weights of `config.pretrained`.

    A key that was not set (`was_set`) takes the source's value; doing it twice changes nothing.

    Args:
      config: of the run that starts from the weights.
      source: of the run directory that holds them.

    Raises:
      ConfigError: a key is set to something that the weights are not.
    """
    wanted = dict(flatten(source))
    wanted |= {f"model.{key}": computed_activation(source, key) for key in ACTIVATIONS}
    values = dict(flatten(config))
    for key in (*INHERITED, *INHERITED_STRIDES):
        if _plain(values[key]) == _plain(wanted[key]):
            continue
        if not was_set(config, key):
            config.update_from_flattened_dict({key: wanted[key]})
        elif key in INHERITED:
            raise ConfigError(
                f"{key} is {values[key]!r}, but the weights in pretrained={config.pretrained!r} "
                f"are of {wanted[key]!r}; leave it out: it comes with the weights."
            )
    seen = wanted["data.normalization"]
    if (
        not was_set(config, "data.normalization")
        or values["data.normalization"] == seen == "dataset"
    ):
        # The weights' own numbers: statistics of other data would be other ones.
        config.data.normalization = "pretrained"
    elif values["data.normalization"] not in ("pretrained", seen):
        raise ConfigError(
            f"data.normalization is {values['data.normalization']!r}, but the weights in "
            f"pretrained={config.pretrained!r} have seen {seen!r}; leave it out: it comes with the "
            "weights."
        )


def inherit_again(config: Config, own: Config) -> None:
    """Takes over, in place, what a run's own stored configuration once took from its weights.

    Args:
      config: of the run, as it was given.
      own: of the run, as it was stored; what is set to something else there, `differences` tells.
    """
    for key in (*INHERITED, *INHERITED_STRIDES, "data.normalization"):
        if not was_set(config, key):
            config.update_from_flattened_dict({key: dict(flatten(own))[key]})
    if own.data.normalization == "pretrained" and config.data.normalization == "dataset":
        config.data.normalization = "pretrained"


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ and change what a run computes: key -> (old, new)."""
    before, after = dict(flatten(old)), dict(flatten(new))
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before | after)
        if before.get(key) != after.get(key) and not key.startswith(RUNTIME_KEYS)
    }


# Keys that came after the first committed runs, and what those runs computed without knowing them.
# At these values they do not count in a fingerprint, and a configuration that lacks them is read
# with them. The values stay what they are when a default changes: else results of the old default
# would answer for the new one. A new key is added here with its value.
LATER_KEYS: Mapping[str, Any] = {
    "pretrained": "",
    "finetune.train_from": "",
    "finetune.backbone_rate": 1.0,
    "finetune.batch_norm": "adapt",
    "model.expanded_features": (),
    "model.output_stride": None,
    "quantize.weights.bits": 0,
    "quantize.weights.symmetric": True,
    "quantize.weights.per_channel": True,
    "quantize.weights.estimator": "min_max",
    "quantize.weights.ranges": "follow",
    "quantize.activations.bits": 0,
    "quantize.activations.symmetric": False,
    "quantize.activations.estimator": "min_max",
    "quantize.activations.ranges": "observe",
    "quantize.rules": (),
    "quantize.calibration_examples": 512,
    "quantize.calibration_dir": "",
    "quantize.percentile": 99.99,
    "quantize.fold": True,
    "quantize.equalize": False,
    "quantize.keep_relu6": False,
    "quantize.absorb_bias": False,
    "quantize.correct_bias": "none",
    "quantize.adaround_steps": 0,
    "quantize.observe_epochs": 0.0,
    "quantize.batch_norm_epochs": 0.0,
    "quantize.step_rate": 1.0,
    "compress.pruning.method": "none",
    "compress.pruning.sparsity": 0.0,
    "compress.pruning.distribution": "uniform",
    "compress.pruning.pattern": "weights",
    "compress.pruning.schedule": "one_shot",
    "compress.pruning.start_epoch": 0.0,
    "compress.pruning.end_epoch": 0.0,
    "compress.pruning.every_steps": 100,
    "compress.pruning.initial_sparsity": 0.0,
    "compress.pruning.drop_fraction": 0.3,
    "compress.pruning.rewind_epoch": None,
    "compress.pruning.rules": (),
    "compress.distillation.teacher": "",
    "compress.distillation.weight": 0.9,
    "compress.distillation.temperature": 4.0,
    "compress.distillation.transfer": "none",
    "compress.distillation.transfer_weight": 1.0,
    "train.best_by": "top1",
    "train.patience": 0,
    "log.writers": (),
}


def fingerprint(
    config: Config,
    *,
    without: Iterable[str] = (),
    instead: Mapping[str, Any] = types.MappingProxyType({}),
) -> str:
    """A hash of what a run computes: equal for configurations that compute the same.

    Keys that change how a run is carried out (RUNTIME_KEYS) do not count, and a number counts by
    its value: 6 and 6.0 are one.

    Args:
      config: complete configuration.
      without: further keys to leave out; ("seed",) groups the replicates of an experiment.
      instead: key -> what it counts as, for replicates whose texts name their seed.

    Returns:
      16 hexadecimal digits.
    """
    left_out = (*RUNTIME_KEYS, *without)
    computed = {
        key: _plain(instead.get(key, value))
        for key, value in flatten(config)
        if not key.startswith(left_out)
        and not (key in LATER_KEYS and _plain(value) == _plain(LATER_KEYS[key]))
    }
    text = json.dumps(computed, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check(ok: bool, key: str, value: Any, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{key} is {value!r}; {allowed}.")


# Strides of the stages in the block tables of the networks that `model.blocks` does not describe.
STAGE_STRIDES = {
    "mobilenet_v1": (1, 2, 2, 2, 2),
    "mobilenet_v3_small": (2, 2, 2, 1, 2),
    "mobilenet_v3_large": (1, 2, 2, 2, 1, 2),
    "resnet18": (1, 2, 2, 2),
    "resnet50": (1, 2, 2, 2),
}
# Keys of the model section that every network reads, and what only some of those above read.
SHARED_KEYS = (
    *("name", "width_multiplier", "divisor", "stem_strides", "stage_strides", "num_classes"),
    *("dropout_rate", "padding", "initializer", "dtype", "conv_form", "remat"),
    *("bn_momentum", "bn_epsilon", "bn_statistics", "bn_group_size"),
)
OWN_KEYS = {"mobilenet_v1": ("activation",)}


def _reads(network: str, key: str) -> bool:
    """Whether a network reads a key of the model section."""
    return network not in STAGE_STRIDES or key in (*SHARED_KEYS, *OWN_KEYS.get(network, ()))


def _leave_network(config: Config, overrides: Mapping[str, Any]) -> None:
    """Takes keys of the network that `overrides` replace back to their defaults, in place.

    Those are keys that the new network does not read, and the strides of the stages, which are a
    row of the old one's table. An experiment file sets them for its own network; what stands next
    to the new name is meant for the new one.
    """
    network, model = str(overrides.get("model.name")), config.model
    if network not in CHOICES["model.name"] or network == model.name:
        return
    default = get_config().model
    for key in default:
        left = key == "stage_strides" or not _reads(network, key)
        if left and f"model.{key}" not in overrides:
            model.unset(key, default[key])


CHOICES = {
    "model.name": ("mobilenet_v2", *STAGE_STRIDES),
    "model.activation": ("relu6", "relu", "hard_swish", "identity"),
    "model.bottleneck_activation": ("relu6", "relu", "hard_swish", "identity"),
    "model.output_stride": (None, 8, 16, 32),
    "model.shortcut": ("bottleneck", "expansion", "none"),
    "model.se_base": ("expanded", "input"),
    "model.se_gate": ("sigmoid", "hard_sigmoid"),
    "model.padding": ("SAME", "SYMMETRIC"),
    "model.bn_statistics": ("sync", "group", "local"),
    "model.initializer": ("he_fan_out", "he_fan_in", "lecun_fan_in", "slim"),
    "model.dtype": ("float32", "bfloat16"),
    "model.conv_form": ("auto", "grouped", "shifted"),
    "data.normalization": ("imagenet", "symmetric", "dataset", "pretrained"),
    "data.in_memory": ("auto", "always", "never"),
    "data.on_error": ("raise", "skip"),
    "data.channels": (1, 3),
    "train.best_by": ("top1", "loss"),
    "finetune.batch_norm": ("adapt", "frozen"),
    "quantize.weights.symmetric": (True, False),
    "quantize.weights.per_channel": (True, False),
    "quantize.activations.symmetric": (True, False),
    "quantize.fold": (True, False),
    "quantize.equalize": (True, False),
    "quantize.keep_relu6": (True, False),
    "quantize.absorb_bias": (True, False),
    "quantize.correct_bias": ("none", "empirical", "analytic"),
    "compress.pruning.method": pruning_rules.METHODS,
    "compress.pruning.distribution": pruning_rules.DISTRIBUTIONS,
    "compress.pruning.schedule": pruning_rules.SCHEDULES,
    "compress.distillation.transfer": ("none", "attention", "features"),
    "optimizer.name": ("sgd", "rmsprop", "adamw"),
    "schedule.name": ("constant", "cosine", "exponential", "piecewise"),
}

# Inclusive lower and upper ends; an end in EXCLUSIVE is not allowed itself.
RANGES = {
    "seed": (0, 2**31 - 1),
    "model.width_multiplier": (0, 16),
    "model.stem_features": (1, math.inf),
    "model.stem_strides": (1, 2),
    "model.head_features": (0, math.inf),
    "model.divisor": (1, math.inf),
    "model.kernel_size": (1, 15),
    "model.num_classes": (0, math.inf),
    "model.se_ratio": (0, 1),
    "model.se_divisor": (1, math.inf),
    "model.dropout_rate": (0, 1),
    "model.bn_momentum": (0, 1),
    "model.bn_epsilon": (0, 1),
    "model.bn_group_size": (1, math.inf),
    "data.validation_fraction": (0, 1),
    "data.test_fraction": (0, 1),
    "data.train_examples": (0, math.inf),
    "data.image_size": (1, 4096),
    "data.crop_fraction": (0, 1),
    "data.num_workers": (0, 1024),
    "data.prefetch_batches": (1, 1024),
    "augment.random_crop_padding": (0, math.inf),
    "augment.brightness": (0, 1),
    "augment.contrast": (0, 1),
    "augment.saturation": (0, 1),
    "augment.hue": (0, 0.5),
    "augment.randaugment_layers": (0, 14),
    "augment.randaugment_magnitude": (0, 10),
    "augment.random_erasing": (0, 1),
    "augment.mixup_alpha": (0, math.inf),
    "augment.cutmix_alpha": (0, math.inf),
    "train.global_batch_size": (1, math.inf),
    "train.num_epochs": (0, math.inf),
    "train.accumulation_steps": (1, math.inf),
    "train.label_smoothing": (0, 1),
    "train.patience": (0, math.inf),
    "train.ema_decay": (0, 1),
    "finetune.backbone_rate": (0, 1),
    "quantize.calibration_examples": (1, math.inf),
    "quantize.percentile": (50, 100),
    "quantize.adaround_steps": (0, math.inf),
    "quantize.observe_epochs": (0, math.inf),
    "quantize.batch_norm_epochs": (0, math.inf),
    "quantize.step_rate": (0, math.inf),
    "compress.pruning.sparsity": (0, 1),
    "compress.pruning.initial_sparsity": (0, 1),
    "compress.pruning.start_epoch": (0, math.inf),
    "compress.pruning.end_epoch": (0, math.inf),
    "compress.pruning.every_steps": (1, math.inf),
    "compress.pruning.drop_fraction": (0, 1),
    "compress.pruning.rewind_epoch": (0, math.inf),
    "compress.distillation.weight": (0, 1),
    "compress.distillation.temperature": (0, math.inf),
    "compress.distillation.transfer_weight": (0, math.inf),
    "optimizer.learning_rate": (0, math.inf),
    "optimizer.momentum": (0, 1),
    "optimizer.decay": (0, 1),
    "optimizer.epsilon": (0, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.clip_norm": (0, math.inf),
    "schedule.warmup_epochs": (0, math.inf),
    "schedule.decay_rate": (0, 1),
    "schedule.decay_epochs": (0, math.inf),
    "schedule.final_fraction": (0, 1),
    "eval.batch_size": (1, math.inf),
    "eval.every_epochs": (0, math.inf),
    "checkpoint.every_steps": (1, math.inf),
    "checkpoint.keep_newest": (1, math.inf),
    "checkpoint.keep_best": (0, math.inf),
    "log.every_steps": (1, math.inf),
}
EXCLUSIVE = {
    "model.width_multiplier": "low",
    "model.se_ratio": "low",
    "model.dropout_rate": "high",
    "model.bn_momentum": "high",
    "model.bn_epsilon": "low",
    "data.validation_fraction": "high",
    "data.test_fraction": "low",
    "data.crop_fraction": "low",
    "quantize.percentile": "low",
    "train.label_smoothing": "high",
    "train.ema_decay": "high",
    "compress.distillation.temperature": "low",
    "compress.pruning.sparsity": "high",
    "compress.pruning.initial_sparsity": "high",
    "optimizer.learning_rate": "low",
    "optimizer.momentum": "high",
    "optimizer.decay": "high",
    "optimizer.epsilon": "low",
    "schedule.decay_rate": "low",
    "schedule.decay_epochs": "low",
}


# Vocabularies of keys whose values `quantization_rules` checks.
_WORDS_OF = {
    "quantize.weights.estimator": rules.WEIGHT_ESTIMATORS,
    "quantize.weights.ranges": rules.WEIGHT_RANGES,
    "quantize.activations.estimator": rules.ESTIMATORS,
    "quantize.activations.ranges": rules.ACTIVATION_RANGES,
}
_BITS = {
    "quantize.weights.bits": rules.WEIGHT_BITS,
    "quantize.activations.bits": rules.ACTIVATION_BITS,
}


def allowed(key: str) -> str:
    """What a key takes, in words: "a number in [0, 1)" or "sgd, rmsprop, adamw"."""
    kind = get_config().kind(key)
    if key in keys.ALLOWED:
        return keys.ALLOWED[key]
    if key in _BITS:
        return "0, or {} to {}".format(*_BITS[key])
    words = CHOICES.get(key) or _WORDS_OF.get(key)
    if words and kind.type is not bool:
        return ", ".join(map(str, words))
    if key in RANGES:
        none = " or None" if kind.optional else ""
        return f"{settings.WORDS[kind.type]} {_range_words(key)}{none}"
    return kind.words


def _range_words(key: str) -> str:
    """The range of a key of RANGES: "at least 0", "above 0" or "in [0, 1)"."""
    (low, high), open_end = RANGES[key], EXCLUSIVE.get(key, "")
    if high == math.inf:
        return f"{'above' if open_end in ('low', 'both') else 'at least'} {low}"
    left = "(" if open_end in ("low", "both") else "["
    right = ")" if open_end in ("high", "both") else "]"
    return f"in {left}{low}, {high}{right}"


def _check_range(key: str, value: float) -> None:
    low, high = RANGES[key]
    open_end = EXCLUSIVE.get(key, "")
    above = value > low if open_end in ("low", "both") else value >= low
    below = value < high if open_end in ("high", "both") else value <= high
    finite = "finite and " if high == math.inf else ""
    allowed = f"it must be {finite}{_range_words(key)}"
    if key == "model.se_ratio":
        allowed += "; leave it out (None) for a network without squeeze-and-excitation"
    _check(math.isfinite(value) and above and below, key, value, allowed)


def validate(config: Config, *, devices: int = 1, processes: int = 1) -> None:
    """Refuses configurations that cannot run, before anything is compiled.

    Args:
      config: complete configuration.
      devices: over all processes.
      processes: of the run.

    Raises:
      ConfigError: one sentence that names the key, the value and what is allowed.
    """
    flat = dict(flatten(config))
    _validate_kinds(flat)
    for key, choices in CHOICES.items():
        _check(flat[key] in choices, key, flat[key], f"allowed are {', '.join(map(str, choices))}")
    for key in RANGES:
        if flat[key] is not None:
            _check_range(key, flat[key])
    _validate_model(config.model)
    _validate_data(config)
    _validate_batches(config, devices, processes)
    _validate_schedule(config)
    _validate_finetuning(config)
    _validate_quantization(config)
    _validate_pruning(config)
    _validate_writers(config.log.writers)
    distillation = config.compress.distillation
    _check(
        bool(distillation.teacher) or distillation.transfer == "none",
        "compress.distillation.transfer",
        distillation.transfer,
        "it needs compress.distillation.teacher, a run directory",
    )


# Where metrics go besides metrics.jsonl: `mobilenet.train.writers`.
LOG_WRITERS = ("csv", "tensorboard", "wandb", "mlflow")


def log_writers(config: Config) -> tuple[str, ...]:
    """The writers of metrics that a configuration asks for, in the order of LOG_WRITERS."""
    asked = {*config.log.writers, *(("tensorboard",) if config.log.tensorboard else ())}
    return tuple(name for name in LOG_WRITERS if name in asked)


def _validate_writers(names: tuple[Any, ...]) -> None:
    known = all(name in LOG_WRITERS for name in names)
    _check(
        known and len(set(names)) == len(names),
        "log.writers",
        names,
        f"allowed are {', '.join(LOG_WRITERS)}, each once and separated by commas",
    )


def _validate_kinds(flat: Mapping[str, Any]) -> None:
    """Refuses a configuration that was not made from `get_config()`, or by going round it."""
    base = get_config()
    for key, value in flat.items():
        settings.coerce(key, base.kind(key), value)
    missing = [key for key, _ in flatten(base) if key not in flat]
    if missing:
        raise ConfigError(
            f"The configuration has no {missing[0]}; start from mobilenet.config.get_config(), "
            "which has every key."
        )


def _validate_model(model: Config) -> None:
    if model.name in STAGE_STRIDES:
        default = get_config().model
        for key in model:
            if model[key] != default[key] and not _reads(model.name, key):
                raise ConfigError(f"model.{key} has no effect on {model.name}; leave it out.")
    _check(model.kernel_size % 2 == 1, "model.kernel_size", model.kernel_size, "it must be odd")
    for row in model.blocks:
        ok = (
            isinstance(row, tuple)
            and len(row) == 4
            and all(isinstance(v, int | float) for v in row)
        )
        ok = ok and row[0] > 0 and all(float(v).is_integer() and v >= 1 for v in row[1:])
        _check(
            ok and row[3] in (1, 2),
            "model.blocks",
            row,
            "each row must be (expansion_ratio > 0, features >= 1, repeats >= 1, strides 1 or 2)",
        )
    _check(len(model.blocks) > 0, "model.blocks", model.blocks, "it must have at least one row")
    widths, count = model.expanded_features, sum(int(row[2]) for row in model.blocks)
    _check(
        len(widths) in (0, count) and all(isinstance(w, int) and w >= 1 for w in widths),
        "model.expanded_features",
        widths,
        f"it must be () or {count} numbers of channels, one per block",
    )
    stages = len(_table_strides(model))
    strides = model.stage_strides
    _check(
        len(strides) in (0, stages) and all(s in (1, 2) for s in strides),
        "model.stage_strides",
        strides,
        f"it must be () or {stages} strides of 1 or 2, one per stage",
    )
    stride = total_stride(model)
    _check(
        model.output_stride in (None, stride),
        "model.output_stride",
        model.output_stride,
        f"the network's strides multiply to {stride}, so it must be at most that, or None",
    )
    ratio = model.expansion_ratio
    ratios = ratio if isinstance(ratio, tuple) else () if ratio is None else (ratio,)
    numbers = all(isinstance(r, int | float) and not isinstance(r, bool) for r in ratios)
    _check(
        numbers and all(0 < r <= 64 for r in ratios),
        "model.expansion_ratio",
        ratio,
        "it must be None, a number in (0, 64], or a tuple of them, one per stage",
    )
    _check(
        not isinstance(ratio, tuple) or len(ratio) == stages,
        "model.expansion_ratio",
        ratio,
        f"a tuple must have {stages} values, one per stage",
    )
    _check(
        not (model.shortcut_projection and model.shortcut != "bottleneck"),
        "model.shortcut_projection",
        True,
        f"it needs model.shortcut='bottleneck', which is {model.shortcut!r}",
    )


def _table_strides(model: Config) -> tuple[int, ...]:
    return STAGE_STRIDES.get(model.name) or tuple(row[3] for row in model.blocks)


def total_stride(model: Config) -> int:
    """Input pixels for one pixel of the last feature map, along one side."""
    # A ResNet's stem of stride 2 has max-pooling of stride 2 after it.
    pooling = 2 if model.name.startswith("resnet") and model.stem_strides == 2 else 1
    strides = model.stage_strides or _table_strides(model)
    stride = math.prod((model.stem_strides, pooling, *strides))
    return stride if model.output_stride is None else min(stride, model.output_stride)


def _validate_data(config: Config) -> None:
    data, augment = config.data, config.augment
    _check(data.name != "", "data.name", data.name, "it must name a data set, such as digits")
    _check(
        data.name != "folder" or data.data_dir != "",
        "data.data_dir",
        data.data_dir,
        "with data.name='folder' give a folder of images: data.data_dir=DIR",
    )
    stride = total_stride(config.model)
    _check(
        data.image_size >= stride,
        "data.image_size",
        data.image_size,
        f"the network's strides multiply to {stride}, so it must be at least {stride} pixels; "
        "raise it, or lower model.stem_strides or model.stage_strides",
    )
    _check(
        augment.random_crop_padding <= data.image_size,
        "augment.random_crop_padding",
        augment.random_crop_padding,
        f"it must be at most data.image_size ({data.image_size})",
    )
    for key, low_end in (("crop_scale", 0.0), ("crop_ratio", 0.0)):
        value = augment[key]
        ok = len(value) == 2 and all(isinstance(v, int | float) for v in value)
        ok = ok and low_end < value[0] <= value[1] and (key == "crop_ratio" or value[1] <= 1)
        top = "1" if key == "crop_scale" else "infinity"
        _check(ok, f"augment.{key}", value, f"it must be two rising numbers between 0 and {top}")
    grey = data.channels == 1
    for key in ("saturation", "hue"):
        _check(
            not (grey and augment[key]),
            f"augment.{key}",
            augment[key],
            "it must be 0 with data.channels=1: grey images have no colour to change",
        )
    _check(
        not (grey and data.normalization == "imagenet"),
        "data.normalization",
        data.normalization,
        "with data.channels=1 it must be symmetric or dataset: ImageNet's statistics are RGB",
    )


def _validate_batches(config: Config, devices: int, processes: int) -> None:
    train, model, augment = config.train, config.model, config.augment
    if model.bn_statistics == "group":
        _check(
            devices % model.bn_group_size == 0,
            "model.bn_group_size",
            model.bn_group_size,
            f"it must divide the {devices} devices",
        )
    _check(
        processes == 1 or devices % processes == 0,
        "processes",
        processes,
        f"each process needs the same number of the {devices} devices",
    )
    if not train.num_epochs:
        return  # no batch is trained
    _check(
        train.global_batch_size % devices == 0,
        "train.global_batch_size",
        train.global_batch_size,
        f"it must be a multiple of the {devices} devices",
    )
    per_device = train.global_batch_size // devices
    _check(
        per_device % train.accumulation_steps == 0,
        "train.accumulation_steps",
        train.accumulation_steps,
        f"it must divide the {per_device} images of one device",
    )
    part = per_device // train.accumulation_steps
    mixes = augment.mixup_alpha > 0 or augment.cutmix_alpha > 0
    _check(
        not mixes or part % 2 == 0,
        "train.global_batch_size",
        train.global_batch_size,
        f"mixup and cutmix pair neighbours: the {part} images that a device computes at once "
        "must be even",
    )
    _check(
        part > 1 or model.bn_statistics != "local",
        "train.global_batch_size",
        train.global_batch_size,
        "with model.bn_statistics='local' each device needs at least 2 images per step",
    )
    _validate_statistics(config, devices, part)


def _validate_statistics(config: Config, devices: int, part: int) -> None:
    """Refuses batch statistics of a single value, which normalisation turns into 0.

    Then no image has an effect on the logits, and no kernel but the classifier's bias a gradient.
    PyTorch refuses it too ("Expected more than 1 value per channel when training").
    """
    model, finetune = config.model, config.finetune
    if finetune.batch_norm == "frozen" or finetune.train_from == "classifier":
        return
    group = {"sync": devices, "group": model.bn_group_size, "local": 1}[model.bn_statistics]
    side = -(-config.data.image_size // total_stride(model))
    _check(
        part * group * side**2 > 1,
        "train.global_batch_size",
        config.train.global_batch_size,
        "in training 1 image is normalised at once, and the last stages have maps of 1 x 1 pixels: "
        "batch normalisation needs at least 2 values per channel; give each part of a batch "
        "(train.accumulation_steps) 2 images, or raise data.image_size",
    )


def _validate_finetuning(config: Config) -> None:
    _check(
        bool(config.pretrained) or config.data.normalization != "pretrained",
        "data.normalization",
        "pretrained",
        "it needs the weights: set pretrained=RUN, a run directory",
    )
    patience = config.train.patience
    _check(
        not patience or config.checkpoint.keep_best > 0,
        "train.patience",
        patience,
        "it needs checkpoint.keep_best of 1 or more: the result is the best checkpoint's",
    )
    _check(
        not patience or config.eval.every_epochs > 0,
        "train.patience",
        patience,
        "it counts validations, so eval.every_epochs must be above 0",
    )


def is_quantized(config: Config) -> bool:
    """Whether the network rounds anything: some bits are set, or a rule says so."""
    quantize = config.quantize
    return bool(quantize.weights.bits or quantize.activations.bits or quantize.rules)


# Keys of the model section that name an activation.
ACTIVATIONS = ("activation", "bottleneck_activation")


def computed_activation(config: Config, key: str) -> str:
    """What the network computes with: of equalised weights ReLU where the model has ReLU6.

    A channel that trades scale with its neighbours must not be clipped at 6 (Nagel et al. 2019,
    section 5.1.1), unless `quantize.keep_relu6` limits the trade.

    Args:
      config: complete configuration.
      key: of ACTIVATIONS.
    """
    chosen = config.model[key]
    quantize = config.quantize
    replaced = is_quantized(config) and quantize.equalize and not quantize.keep_relu6
    return "relu" if replaced and chosen == "relu6" else chosen


def quantization_rules(config: Config) -> rules.Rules:
    """The rules of `config.quantize`.

    Raises:
      ConfigError: a value that is not allowed.
    """
    quantize = config.quantize
    try:
        return rules.parse(quantize.weights, quantize.activations, quantize.rules)
    except rules.RuleError as error:
        raise ConfigError(f"quantize: {error}.") from error


# Keys of the quantize section that decide what a run starts from, and not what its step computes.
PREPARATION = (
    *("weights.bits", "weights.estimator", "activations.bits", "activations.estimator"),
    *(
        "calibration_examples",
        "calibration_dir",
        "percentile",
        "fold",
        "absorb_bias",
        "correct_bias",
    ),
    *("adaround_steps", "observe_epochs", "step_rate"),
)


def normalize_quantization(config: Config) -> None:
    """Sets, in place, what a quantised network's steps do not depend on to fixed values."""
    if not is_quantized(config):
        return
    texts = quantization_rules(config).structure.texts
    default = dict(flatten(get_config().quantize))
    config.quantize.update_from_flattened_dict({key: default[key] for key in PREPARATION})
    config.quantize.rules = texts
    config.quantize.weights.bits = 8  # any: the network stays one that is quantised
    # Whether it ends is the program's; when it does, a number.
    config.quantize.batch_norm_epochs = float(config.quantize.batch_norm_epochs > 0)


def _validate_quantization(config: Config) -> None:
    quantize, model = config.quantize, config.model
    quantization_rules(config)
    _check(
        config.train.num_epochs > 0 or bool(config.pretrained),
        "train.num_epochs",
        config.train.num_epochs,
        "without training there must be weights to start from: set pretrained=RUN, a run directory",
    )
    if not is_quantized(config):
        for key, off in (
            ("equalize", False), ("keep_relu6", False), ("absorb_bias", False),
            ("correct_bias", "none"), ("adaround_steps", 0),
        ):  # fmt: skip
            _check(
                quantize[key] == off,
                f"quantize.{key}",
                quantize[key],
                "nothing is quantised; set quantize.weights.bits",
            )
        return
    _check(
        model.name == "mobilenet_v2",
        "model.name",
        model.name,
        "quantize knows mobilenet_v2 alone",
    )
    _check(
        model.dtype == "float32",
        "model.dtype",
        model.dtype,
        "a quantised network must compute in float32, which holds every code exactly",
    )
    for key in ACTIVATIONS:
        _check(
            not quantize.equalize or model[key] in ("relu", "relu6", "identity"),
            "quantize.equalize",
            True,
            f"model.{key} is {model[key]!r}, which does not scale with its input",
        )
    _check(
        not quantize.absorb_bias or quantize.equalize,
        "quantize.absorb_bias",
        True,
        "it needs quantize.equalize=True",
    )
    _check(
        not quantize.keep_relu6 or (quantize.equalize and not quantize.absorb_bias),
        "quantize.keep_relu6",
        True,
        "it needs quantize.equalize=True, and quantize.absorb_bias=False, which moves what is "
        "clipped",
    )


def is_pruned(config: Config) -> bool:
    """Whether weights are masked in training."""
    return config.compress.pruning.method != "none"


def pruning_selection(config: Config) -> tuple[pruning_rules.Rules, pruning_rules.Pattern]:
    """Rules and pattern of `config.compress.pruning`.

    Raises:
      ConfigError: a value that is not allowed.
    """
    pruning = config.compress.pruning
    try:
        rows = pruning_rules.parse_rules(pruning.rules)
        return rows, pruning_rules.parse_pattern(pruning.pattern)
    except pruning_rules.RuleError as error:
        raise ConfigError(f"compress.pruning: {error}.") from error


# Numbers of the distillation section that are arguments of the step.
DISTILLATION_NUMBERS = ("weight", "temperature", "transfer_weight")
# Keys of the pruning section that are numbers of a run: its compiled step does not know them.
PRUNING_NUMBERS = (
    *("sparsity", "initial_sparsity", "schedule", "start_epoch", "end_epoch", "every_steps"),
    "drop_fraction",
)


def normalize_pruning(config: Config) -> None:
    """Sets, in place, what a pruned network's steps do not depend on to fixed values."""
    pruning, default = config.compress.pruning, get_config().compress.pruning
    for key in PRUNING_NUMBERS:
        pruning[key] = default[key]
    if pruning.distribution == "erk":
        pruning.distribution = "uniform"  # either is counts of the kernels, made on the host
    if pruning.rewind_epoch is not None:
        pruning.rewind_epoch = 0.0


def _validate_pruning(config: Config) -> None:
    pruning, epochs = config.compress.pruning, config.train.num_epochs
    key = "compress.pruning"
    rules, pattern = pruning_selection(config)
    if not is_pruned(config):
        _check(
            not pruning.sparsity,
            f"{key}.sparsity",
            pruning.sparsity,
            f"nothing is pruned; set {key}.method",
        )
        return
    regrows = pruning.method in pruning_rules.REGROWING
    once = pruning.schedule == "one_shot"
    _check(epochs > 0, "train.num_epochs", epochs, "pruning happens in training")
    _check(
        not config.finetune.train_from,
        "finetune.train_from",
        config.finetune.train_from,
        f"modules that stay as they are cannot be pruned; leave it out, or {key}.method='none'",
    )
    if pruning.method == "zeros":
        _check(
            bool(config.pretrained),
            f"{key}.method",
            "zeros",
            "it needs weights with zeros: set pretrained=RUN",
        )
        _check(
            not pruning.sparsity and pruning.rewind_epoch is None,
            f"{key}.sparsity",
            pruning.sparsity,
            "with method='zeros' the weights in pretrained decide it, and nothing is rewound; "
            "leave sparsity and rewind_epoch out",
        )
        return
    _check(pruning.sparsity > 0, f"{key}.sparsity", pruning.sparsity, "it must be in (0, 1)")
    last = pruning.start_epoch if once and not regrows else pruning.end_epoch
    _check(
        pruning.start_epoch < epochs,
        f"{key}.start_epoch",
        pruning.start_epoch,
        f"it must be below train.num_epochs ({epochs})",
    )
    _check(
        last <= epochs,
        f"{key}.end_epoch",
        pruning.end_epoch,
        f"training ends before it; it must be at most train.num_epochs ({epochs})",
    )
    _check(
        last >= pruning.start_epoch and (once or last > pruning.start_epoch),
        f"{key}.end_epoch",
        pruning.end_epoch,
        f"it must be above {key}.start_epoch ({pruning.start_epoch})",
    )
    _check(
        once or not regrows,
        f"{key}.schedule",
        pruning.schedule,
        f"{pruning.method} has its whole sparsity from {key}.start_epoch on; set one_shot",
    )
    _check(
        once or pruning.initial_sparsity <= pruning.sparsity,
        f"{key}.initial_sparsity",
        pruning.initial_sparsity,
        f"it must be at most {key}.sparsity ({pruning.sparsity})",
    )
    _check(
        not regrows or (pattern.kind == "weights" and pruning.distribution != "global"),
        f"{key}.method",
        pruning.method,
        "it exchanges single weights within a kernel; set pattern='weights' and distribution "
        "'uniform' or 'erk'",
    )
    if pattern.kind == "n_of_m":
        exact = 1 - pattern.kept / pattern.group
        _check(
            math.isclose(pruning.sparsity, exact, rel_tol=1e-9),
            f"{key}.sparsity",
            pruning.sparsity,
            f"{pruning.pattern} is a sparsity of {exact:g}; set that",
        )
    own = [row for row, action in rules.rows if not isinstance(action, str)]
    _check(
        not own or (pruning.distribution == "uniform" and pattern.kind != "n_of_m"),
        f"{key}.rules",
        own[0] if own else "",
        "a sparsity of its own needs distribution='uniform', and not N:M",
    )
    rewind = pruning.rewind_epoch
    _check(
        rewind is None or (rewind < pruning.start_epoch and not regrows),
        f"{key}.rewind_epoch",
        rewind,
        f"it must be below {key}.start_epoch ({pruning.start_epoch}), and not of rigl or set",
    )


def _validate_schedule(config: Config) -> None:
    schedule, train = config.schedule, config.train
    _check(
        schedule.warmup_epochs < train.num_epochs or schedule.warmup_epochs == 0,
        "schedule.warmup_epochs",
        schedule.warmup_epochs,
        f"it must be below train.num_epochs ({train.num_epochs})",
    )
    bounds = schedule.boundary_epochs
    rising = all(isinstance(b, int | float) for b in bounds) and all(
        a < b for a, b in zip(bounds, bounds[1:], strict=False)
    )
    _check(rising, "schedule.boundary_epochs", bounds, "it must be rising numbers of epochs")
    _check(
        schedule.name != "piecewise" or len(bounds) > 0,
        "schedule.boundary_epochs",
        bounds,
        "schedule.name='piecewise' needs at least one boundary",
    )
    _check(
        not (config.optimizer.nesterov and config.optimizer.name != "sgd"),
        "optimizer.nesterov",
        True,
        f"only optimizer.name='sgd' has it, not {config.optimizer.name!r}",
    )
