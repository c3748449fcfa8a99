"""The configuration: what it refuses, in which words, and that it survives JSON."""

import copy
import functools
import json
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pytest

from mobilenet import config as config_lib
from mobilenet import settings
from mobilenet.config import ConfigError

PRUNED = {"compress.pruning.method": "magnitude", "compress.pruning.sparsity": 0.5}
# (overrides, what the message must say): each message names the key, the value and what is allowed.
REFUSED: list[tuple[dict[str, Any], str]] = [
    # ruff: noqa: E501 (one refusal a line)
    ({"model.widht_multiplier": 0.5}, "did you mean model.width_multiplier?"),
    ({"nonsense": 1}, "nonsense is not a configuration key"),
    ({"model.width_multiplier": "wide"}, "model.width_multiplier is 'wide'; it must be a number"),
    ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
    ({"seed": None}, "seed is None; it must be a whole number"),
    ({"seed": True}, "seed is True; it must be a whole number"),
    ({"seed": 10**400}, "seed is 1000.*; it must be a whole number"),
    ({"optimizer.learning_rate": True}, "optimizer.learning_rate is True; it must be a number"),
    ({"optimizer.learning_rate": 10**400}, "it must be a number"),
    ({"augment.random_erasing": np.bool_(True)}, "augment.random_erasing is True; it must be a number"),
    ({"data.channels": True}, "data.channels is True; it must be a whole number"),
    ({"data.name": 1}, "data.name is 1; it must be text"),
    ({"model.remat": 1}, "model.remat is 1; it must be True or False"),
    ({"model.num_classes": "ten"}, "model.num_classes is 'ten'; it must be a whole number or None"),
    ({"model.se_ratio": False}, "model.se_ratio is False; it must be a number or None"),
    ({"model.output_stride": 16.5}, "model.output_stride is 16.5; it must be a whole number or None"),
    ({"compress.pruning.rewind_epoch": "1"}, "rewind_epoch is '1'; it must be a number or None"),
    ({"model.expansion_ratio": True}, "model.expansion_ratio is True; it must be None, a number"),
    ({"model.expansion_ratio": (True,) * 7}, "model.expansion_ratio has True in its tuple"),
    ({"model.blocks": ((True, 16, 1, 1),)}, "model.blocks has True in its tuple"),
    ({"schedule.boundary_epochs": (True, 3)}, "schedule.boundary_epochs has True in its tuple"),
    ({"augment.crop_scale": 0.5}, r"augment.crop_scale is 0.5; it must be a tuple, such as \(1, 2\)"),
    ({"seed": -1}, r"seed is -1; it must be in \[0, 2147483647\]"),
    ({"model.width_multiplier": 0.0}, r"model.width_multiplier is 0.0; it must be in \(0, 16\]"),
    ({"model.width_multiplier": float("nan")}, "model.width_multiplier is nan"),
    ({"model.se_ratio": 0.0}, "model.se_ratio is 0.0; .* leave it out"),
    ({"model.se_ratio": 1.5}, r"model.se_ratio is 1.5; it must be in \(0, 1\]"),
    ({"model.activation": "gelu"}, "model.activation is 'gelu'; allowed are relu6, relu, hard_swish"),
    ({"model.padding": "VALID"}, "model.padding is 'VALID'; allowed are SAME, SYMMETRIC"),
    ({"model.shortcut": "both"}, "model.shortcut is 'both'; allowed are bottleneck, expansion, none"),
    ({"model.shortcut": "none", "model.shortcut_projection": True}, "it needs model.shortcut="),
    ({"model.dtype": "float16"}, "model.dtype is 'float16'; allowed are float32, bfloat16"),
    ({"model.kernel_size": 4}, "model.kernel_size is 4; it must be odd"),
    ({"model.dropout_rate": 1.0}, r"model.dropout_rate is 1.0; it must be in \[0, 1\)"),
    ({"model.bn_momentum": 1.0}, r"model.bn_momentum is 1.0; it must be in \[0, 1\)"),
    ({"model.expansion_ratio": 0}, "model.expansion_ratio is 0; it must be None, a number"),
    ({"model.expansion_ratio": (6, 6)}, "a tuple must have 7 values"),
    ({"model.expansion_ratio": "6"}, "model.expansion_ratio is '6'; it must be None, a number"),
    ({"model.stage_strides": (1, 2)}, "model.stage_strides is .*7 strides of 1 or 2"),
    ({"model.stage_strides": (1, 1, 2, 2, 1, 3, 1)}, "7 strides of 1 or 2"),
    ({"model.expanded_features": (32, 48)}, r"model.expanded_features is \(32, 48\); it must be \(\) or 17 numbers"),
    ({"model.output_stride": 4}, "model.output_stride is 4; allowed are None, 8, 16, 32"),
    ({"model.stem_strides": 1, "model.output_stride": 32}, "model.output_stride is 32; the network's strides multiply to 16, so it must be at most that"),
    ({"model.blocks": ((6, 16, 1),)}, "each row must be"),
    ({"model.blocks": ((6, 16, 1, 3),)}, "strides 1 or 2"),
    ({"data.image_size": 16}, "data.image_size is 16; the network's strides multiply to 32"),
    ({"data.name": ""}, "data.name is ''; it must name a data set"),
    ({"data.name": "folder"}, "give a folder of images: data.data_dir=DIR"),
    ({"data.channels": 4}, "data.channels is 4; allowed are 1, 3"),
    ({"data.channels": 1, "data.normalization": "imagenet"}, "must be symmetric or dataset"),
    ({"data.channels": 1, "augment.hue": 0.1}, "augment.hue is 0.1; it must be 0 with data.channels=1"),
    ({"data.validation_fraction": 1.0}, r"data.validation_fraction is 1.0; it must be in \[0, 1\)"),
    ({"data.crop_fraction": 0.0}, r"data.crop_fraction is 0.0; it must be in \(0, 1\]"),
    ({"data.on_error": "ignore"}, "data.on_error is 'ignore'; allowed are raise, skip"),
    ({"augment.crop_scale": (0.5, 0.2)}, "augment.crop_scale is .* two rising numbers"),
    ({"augment.random_crop_padding": 64}, r"it must be at most data.image_size \(32\)"),
    ({"augment.hue": 0.7}, r"augment.hue is 0.7; it must be in \[0, 0.5\]"),
    ({"train.global_batch_size": 0}, "train.global_batch_size is 0; it must be finite and at least 1"),
    ({"train.num_epochs": 0.0}, "train.num_epochs is 0.0; without training"),
    ({"train.num_epochs": float("inf")}, "train.num_epochs is inf"),
    ({"train.accumulation_steps": 3}, "it must divide the 128 images of one device"),
    ({"train.global_batch_size": 3, "augment.mixup_alpha": 0.2}, "must be even"),
    ({"train.global_batch_size": 6, "train.accumulation_steps": 2, "augment.mixup_alpha": 0.2}, "the 3 images that a device computes at once must be even"),
    ({"train.label_smoothing": 1.0}, r"train.label_smoothing is 1.0; it must be in \[0, 1\)"),
    ({"optimizer.name": "lamb"}, "optimizer.name is 'lamb'; allowed are sgd, rmsprop, adamw"),
    ({"optimizer.learning_rate": 0.0}, "optimizer.learning_rate is 0.0; it must be finite and above 0"),
    ({"optimizer.name": "adamw", "optimizer.nesterov": True}, "only optimizer.name='sgd' has it"),
    ({"schedule.name": "piecewise"}, "needs at least one boundary"),
    ({"schedule.boundary_epochs": (3.0, 2.0)}, "it must be rising numbers of epochs"),
    ({"schedule.warmup_epochs": 10.0}, r"it must be below train.num_epochs \(10.0\)"),
    ({"checkpoint.keep_newest": 0}, "checkpoint.keep_newest is 0; it must be finite and at least 1"),
    ({"model.bn_statistics": "global"}, "allowed are sync, group, local"),
    ({"quantize.weights.bits": 9}, r"quantize.weights: bits is 9; it must be in 2..8 for weights"),
    ({"quantize.activations.bits": 3}, r"bits is 3; it must be in 4..16 for activations"),
    ({"quantize.weights.estimator": "kl"}, "allowed for weights are min_max, percentile, mse"),
    ({"quantize.activations.ranges": "follow"}, "allowed for activations are observe, fixed"),
    ({"quantize.activations.ranges": "lsq"}, "learns a symmetric grid; set symmetric=True"),
    ({"quantize.rules": (("stem/.*", "bit=8"),)}, "the rule 'stem/.*' says 'bit=8'; it must be one"),
    ({"quantize.rules": (("stem(", "bits=8"),)}, r"the rule 'stem\(' is not a regular expression"),
    ({"quantize.rules": (("stem",),)}, "it must be a pattern of site names and the changes"),
    ({"quantize.equalize": True}, "nothing is quantised; set quantize.weights.bits"),
    ({"quantize.calibration_examples": 0}, "quantize.calibration_examples is 0; it must be finite"),
    ({"quantize.weights.bits": 8, "model.dtype": "bfloat16"}, "must compute in float32"),
    ({"quantize.weights.bits": 8, "quantize.absorb_bias": True}, "it needs quantize.equalize=True"),
    ({"quantize.weights.bits": 8, "quantize.keep_relu6": True}, "it needs quantize.equalize=True"),
    (
        {
            "quantize.weights.bits": 8, "quantize.equalize": True, "quantize.absorb_bias": True,
            "quantize.keep_relu6": True,
        },
        "and quantize.absorb_bias=False",
    ),
    ({"compress.pruning.sparsity": 1.0}, r"compress.pruning.sparsity is 1.0; it must be in \[0, 1\)"),
    ({"compress.pruning.sparsity": 0.5}, "nothing is pruned; set compress.pruning.method"),
    ({**PRUNED, "compress.pruning.sparsity": 0.0}, r"compress.pruning.sparsity is 0.0; it must be in \(0, 1\)"),
    ({**PRUNED, "compress.pruning.schedule": "cubic", "compress.pruning.end_epoch": 11.0}, r"end_epoch is 11.0; training ends before it; it must be at most train.num_epochs \(10.0\)"),
    ({**PRUNED, "compress.pruning.start_epoch": 10.0}, r"start_epoch is 10.0; it must be below train.num_epochs"),
    ({**PRUNED, "compress.pruning.schedule": "cubic"}, r"end_epoch is 0.0; it must be above compress.pruning.start_epoch"),
    ({**PRUNED, "compress.pruning.pattern": "4:2"}, "the pattern is '4:2'; allowed are weights, N:M"),
    ({**PRUNED, "compress.pruning.pattern": "2:4", "compress.pruning.sparsity": 0.6}, "2:4 is a sparsity of 0.5; set that"),
    ({**PRUNED, "compress.pruning.rules": (("expand", "half"),)}, "the rule 'expand' says 'half'; it must be prune, spare"),
    ({**PRUNED, "compress.pruning.rules": (("expand", "0.5"),), "compress.pruning.distribution": "global"}, "a sparsity of its own needs distribution='uniform'"),
    ({**PRUNED, "compress.pruning.method": "zeros"}, "it needs weights with zeros: set pretrained=RUN"),
    ({**PRUNED, "compress.pruning.method": "rigl", "compress.pruning.distribution": "global"}, "it exchanges single weights within a kernel"),
    ({**PRUNED, "compress.pruning.rewind_epoch": 1.0}, r"rewind_epoch is 1.0; it must be below compress.pruning.start_epoch \(0.0\)"),
    ({**PRUNED, "finetune.train_from": "head"}, "modules that stay as they are cannot be pruned"),
    ({"compress.distillation.weight": 1.5}, r"compress.distillation.weight is 1.5; it must be in \[0, 1\]"),
    ({"compress.distillation.temperature": 0.0}, "temperature is 0.0; it must be finite and above 0"),
    ({"compress.distillation.transfer": "attention"}, "it needs compress.distillation.teacher"),
    ({**PRUNED, "train.num_epochs": 0.0, "pretrained": "x"}, "pruning happens in training"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED)
def test_bad_configurations_are_refused_in_one_sentence(overrides: dict[str, Any], message: str):
    config = config_lib.get_config()
    with pytest.raises(ConfigError, match=message) as caught:
        config_lib.update(config, overrides)
        config_lib.validate(config)
    assert "\n" not in str(caught.value)


def test_devices_must_divide_the_batch():
    config = config_lib.get_config()
    with pytest.raises(ConfigError, match="must be a multiple of the 3 devices"):
        config_lib.validate(config, devices=3)
    config.model.bn_statistics = "group"
    config.model.bn_group_size = 3
    with pytest.raises(ConfigError, match="it must divide the 4 devices"):
        config_lib.validate(config, devices=4)


def test_without_training_the_batch_need_not_fit():
    config = config_lib.get_config()
    config_lib.update(
        config,
        {
            "train.num_epochs": 0.0,
            "pretrained": "x",
            "train.global_batch_size": 3,
            "train.accumulation_steps": 2,
            "augment.mixup_alpha": 0.2,
        },
    )
    config_lib.validate(config, devices=2)


def test_one_picture_a_device_has_no_local_statistics():
    config = config_lib.get_config()
    config.train.global_batch_size = 2
    config.model.bn_statistics = "local"
    with pytest.raises(ConfigError, match="at least 2 images"):
        config_lib.validate(config, devices=2)


ONE = {"train.global_batch_size": 1}


@pytest.mark.parametrize(
    ("overrides", "devices", "ok"),
    [
        (ONE, 1, False),
        (ONE | {"data.image_size": 33}, 1, True),  # maps of 2 x 2
        (ONE | {"model.stem_strides": 1, "data.image_size": 16}, 1, False),
        (ONE | {"model.name": "mobilenet_v3_small"}, 1, False),
        (ONE | {"model.name": "resnet18"}, 1, False),
        ({"train.global_batch_size": 2}, 1, True),
        ({"train.global_batch_size": 2, "train.accumulation_steps": 2}, 1, False),
        ({"train.accumulation_steps": 128}, 1, False),
        ({"train.accumulation_steps": 64}, 2, True),  # one image on each of two devices
        ({"train.accumulation_steps": 64, "model.bn_statistics": "group"}, 2, False),
        (ONE | {"finetune.batch_norm": "frozen"}, 1, True),
        (ONE | {"finetune.train_from": "classifier"}, 1, True),
        (ONE | {"finetune.train_from": "head"}, 1, False),
        (ONE | {"train.num_epochs": 0.0, "pretrained": "x"}, 1, True),
    ],
)
def test_one_value_per_channel_is_no_batch(overrides: dict[str, Any], devices: int, ok: bool):
    config = config_lib.get_config()
    config_lib.update(config, overrides)
    if ok:
        config_lib.validate(config, devices=devices)
        return
    with pytest.raises(ConfigError, match="at least 2 values per channel"):
        config_lib.validate(config, devices=devices)


def test_every_key_is_checked_or_free():
    # A new key must be given a range or choices, or be listed here as free (text, switch, tuple
    # that `validate` treats by itself).
    free = {
        "pretrained", "finetune.train_from",
        "model.blocks", "model.expansion_ratio", "model.expanded_features", "model.stage_strides", "model.shrink_head",
        "model.shortcut_projection", "model.expand_always", "model.remat", "data.name",
        "data.data_dir", "data.train_split", "data.test_split", "data.validation_split",
        "augment.random_resized_crop", "augment.crop_scale", "augment.crop_ratio",
        "augment.horizontal_flip", "optimizer.nesterov", "optimizer.decay_depthwise",
        "schedule.staircase", "schedule.boundary_epochs", "log.tensorboard",
        "log.writers",
        "quantize.weights.bits", "quantize.weights.estimator", "quantize.weights.ranges",
        "quantize.activations.bits", "quantize.activations.estimator",
        "quantize.activations.ranges", "quantize.rules", "quantize.calibration_dir",
        "compress.pruning.pattern", "compress.pruning.rules", "compress.distillation.teacher",
    }  # fmt: skip
    keys = {key for key, _ in config_lib.flatten(config_lib.get_config())}
    assert keys == free | set(config_lib.RANGES) | set(config_lib.CHOICES)


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("model.num_classes", 16.0, 16),
        ("model.output_stride", np.int64(16), 16),
        ("seed", 1e3, 1000),
        ("optimizer.learning_rate", np.float32(0.5), 0.5),
        ("model.width_multiplier", 1, 1.0),
        ("model.remat", np.True_, True),
        ("model.blocks", [[1, 16.0, 1, 1]], ((1, 16, 1, 1),)),
        ("model.stage_strides", np.asarray([1, 2]), (1, 2)),
        ("model.expanded_features", (8.0,), (8,)),
        ("augment.crop_scale", [0.5, 1.0], (0.5, 1.0)),
        ("quantize.rules", [["stem/.*", "bits=8"]], (("stem/.*", "bits=8"),)),
        ("pretrained", Path("runs/a"), "runs/a"),
    ],
)
def test_values_are_kept_as_their_keys_have_them(key: str, value: Any, kept: Any):
    assigned, updated = config_lib.get_config(), config_lib.get_config()
    config_lib.update(updated, {key: value})
    section, _, name = key.rpartition(".")
    setattr(assigned[section] if section else assigned, name, value)
    for config in (assigned, updated, updated.copy_and_resolve_references()):
        found = dict(config_lib.flatten(config))[key]
        assert found == kept and repr(found) == repr(kept)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("model.num_classes", "1e1", 10),
        ("model.num_classes", "None", None),
        ("model.output_stride", "16.0", 16),
        ("model.se_ratio", "1/4", 0.25),
        ("seed", "4/2", 2),
        ("augment.crop_ratio", "(3/4, 4/3)", (0.75, 4 / 3)),
        ("augment.crop_ratio", "3/4,4/3", (0.75, 4 / 3)),
        ("model.expansion_ratio", "[1, 7/2]", (1, 3.5)),
        ("model.blocks", "[[1, 16, 1, 1]]", ((1, 16, 1, 1),)),
        ("data.name", "1/4", "1/4"),
    ],
)
def test_text_takes_the_kind_of_its_key(key: str, text: str, value: Any):
    found = config_lib.parse(config_lib.get_config(), key, text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        (
            "model.num_classes",
            "ten",
            "model.num_classes is 'ten'; it must be a whole number or None.",
        ),
        (
            "model.num_classes",
            "1/0",
            "model.num_classes is '1/0'; it must be a whole number or None.",
        ),
        ("model.se_ratio", "none", "model.se_ratio is 'none'; it must be a number or None."),
        (
            "optimizer.learning_rate",
            "True",
            "optimizer.learning_rate is 'True'; it must be a number.",
        ),
        ("seed", "1/4", "seed is '1/4'; it must be a whole number."),
        ("seed", "", "seed is ''; it must be a whole number."),
        ("seed", "(" * 300, f"seed is '{'(' * 79}...; it must be a whole number."),
        ("model.remat", "yes", "model.remat is 'yes'; it must be true or false."),
        ("augment.crop_ratio", "'a'/2", "it must be a tuple, such as (1, 2) or (1,)."),
    ],
)
def test_text_of_another_kind_is_refused(key: str, text: str, message: str):
    with pytest.raises(ConfigError) as caught:
        config_lib.parse(config_lib.get_config(), key, text)
    assert str(caught.value).endswith(message)


def test_a_copy_takes_what_the_original_takes():
    # `ConfigDict` forgets in a copy that a key may be None, and fixes the kind of its value.
    config = config_lib.get_config()
    config_lib.update(config, {"model.expansion_ratio": 6, "model.num_classes": 10})
    for copied in (config.copy_and_resolve_references(), copy.deepcopy(config)):
        config_lib.update(copied, {"model.expansion_ratio": 3.5, "model.num_classes": None})
        assert (copied.model.expansion_ratio, copied.model.num_classes) == (3.5, None)
        with pytest.raises(ConfigError, match="it must be a whole number or None"):
            copied.model.num_classes = 2.5


def test_the_home_directory_may_be_written_as_a_tilde(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    config, paths = config_lib.get_config(), settings.PATHS
    config_lib.update(config, {key: "~/runs/a" for key in paths} | {"data.name": "~/a"})
    found = dict(config_lib.flatten(config))
    assert {found[key] for key in paths} == {"/home/me/runs/a"} and found["data.name"] == "~/a"
    assert config_lib.parse(config, "pretrained", "~/b") == "/home/me/b"


def test_json_round_trip_is_exact():
    config = config_lib.get_config()
    config_lib.update(
        config,
        {
            "model.blocks": ((1, 16, 1, 1), (6.5, 24, 2, 2)),
            "model.expansion_ratio": (1, 3.5),
            "model.se_ratio": 0.25,
            "optimizer.learning_rate": 0.1 + 0.2,
        },
    )
    text = config_lib.to_json(config)
    again = config_lib.from_json(text)
    assert config_lib.to_json(again) == text
    assert again.model.blocks == ((1, 16, 1, 1), (6.5, 24, 2, 2))
    assert not config_lib.differences(config, again)


def test_from_json_refuses_unknown_keys():
    values = json.loads(config_lib.to_json(config_lib.get_config()))
    values["model"]["depth"] = 3
    with pytest.raises(ConfigError, match="model.depth is not a configuration key"):
        config_lib.from_json(json.dumps(values))


def test_differences_show_what_changes_results_alone():
    old, new = config_lib.get_config(), config_lib.get_config()
    new.log.every_steps = 7
    new.eval.batch_size = 3
    assert config_lib.differences(old, new) == {}
    new.seed = 4
    assert config_lib.differences(old, new) == {"seed": (0, 4)}


def test_keys_are_locked():
    config = config_lib.get_config()
    with pytest.raises(AttributeError, match="model.widht_multiplier is not a configuration key"):
        config.model.widht_multiplier = 3
    with pytest.raises(ConfigError, match="did you mean model.blocks?"):
        _ = config.model.blokcs
    with pytest.raises(ConfigError, match="modle is not a configuration key; did you mean model?"):
        config.modle.depth = 3
    with pytest.raises(ConfigError, match="model is a section; set its keys, such as model."):
        config.model = {"name": "resnet18"}


def test_configurations_that_are_not_made_from_the_base_are_refused():
    with pytest.raises(ConfigError, match="has no .*; start from mobilenet.config.get_config"):
        config_lib.validate(ml_collections.ConfigDict({"seed": 1}))
    config = config_lib.get_config()
    with config.unlocked():
        config.model.depth = 3
    with pytest.raises(ConfigError, match="model.depth is not a configuration key"):
        config_lib.validate(config)


def test_unknown_argument_is_refused():
    with pytest.raises(ConfigError, match="allowed are none and 'smoke'"):
        config_lib.get_config("tiny")


def test_keys_that_came_later_count_only_when_they_are_set():
    config, other = config_lib.get_config(), config_lib.get_config()
    config_lib.update(other, {"train.patience": 3})
    assert config_lib.fingerprint(config) != config_lib.fingerprint(other)
    for key in config_lib.LATER_KEYS:
        assert any(known.startswith(key) for known, _ in config_lib.flatten(config)), key
    # The base configuration's, from before those keys.
    assert config_lib.fingerprint(config) == "7e7d7a68f8494b6b"


# ---- what was set, and what an identity leaves out


def test_setting_a_key_to_its_default_is_setting_it():
    config = config_lib.get_config()
    assert not any(config_lib.was_set(config, key) for key, _ in config_lib.flatten(config))
    config.model.width_multiplier = 1.0
    config_lib.update(config, {"model.se_ratio": None, "seed": 0})
    copies = (config, config.copy_and_resolve_references(), copy.deepcopy(config))
    for each in copies:
        found = {key for key, _ in config_lib.flatten(each) if config_lib.was_set(each, key)}
        assert found == {"model.width_multiplier", "model.se_ratio", "seed"}
    config_lib.unset(config, "model.width_multiplier")
    assert not config_lib.was_set(config, "model.width_multiplier")
    assert config_lib.was_set(copies[1], "model.width_multiplier")


def test_every_key_of_a_stored_configuration_is_set():
    config = config_lib.from_json(config_lib.to_json(config_lib.get_config()))
    assert all(config_lib.was_set(config, key) for key, _ in config_lib.flatten(config))


@pytest.mark.parametrize(
    "key", [key for key in config_lib.LATER_KEYS if not key.startswith(config_lib.RUNTIME_KEYS)]
)
def test_what_an_identity_leaves_out_is_not_todays_default(
    key: str, monkeypatch: pytest.MonkeyPatch
):
    old = config_lib.get_config()
    text, before = config_lib.to_json(old), config_lib.fingerprint(old)
    stored = json.loads(text)
    *sections, name = key.split(".")
    section = functools.reduce(lambda part, part_name: part[part_name], sections, stored)
    del section[name]

    def with_another_default(arg: str = "") -> config_lib.Config:
        config = get_config(arg)
        value = dict(config_lib.flatten(config))[key]
        other: Any = not value if isinstance(value, bool) else ("x",)
        if isinstance(value, str):
            other = value + "x"
        elif isinstance(value, int | float) and not isinstance(value, bool):
            other = value + 1
        elif value is None:
            other = 16
        config_lib.update(config, {key: other})
        return config

    get_config = config_lib.get_config
    monkeypatch.setattr(config_lib, "get_config", with_another_default)
    # A new configuration of the new default is another run, unless the key never counts; an old one
    # is still what it was.
    counts = not key.startswith(config_lib.RUNTIME_KEYS)
    assert (config_lib.fingerprint(config_lib.get_config()) != before) == counts
    assert config_lib.fingerprint(config_lib.from_json(json.dumps(stored))) == before
