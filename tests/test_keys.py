"""Every key has a meaning in one place, and a misspelt key is answered with the one meant."""

import pytest

from mobilenet import config as config_lib
from mobilenet import keys, settings

KEYS = tuple(key for key, _ in config_lib.flatten(config_lib.get_config()))


def test_every_key_has_a_meaning_and_a_section():
    assert set(keys.MEANINGS) == set(KEYS)
    assert set(keys.SECTIONS) == {key.rpartition(".")[0] for key in KEYS}
    for key, meaning in keys.MEANINGS.items():
        assert meaning[0].isalnum() and meaning.endswith("."), key
    assert set(keys.ALLOWED) <= set(KEYS)
    assert not set(keys.ALLOWED) & {*config_lib.CHOICES, *config_lib.RANGES}


def test_the_keys_of_a_section_stand_together():
    sections = [key.rpartition(".")[0] for key in keys.MEANINGS]
    changes = sum(a != b for a, b in zip(sections, sections[1:], strict=False))
    assert changes == len(keys.SECTIONS) - 1


def test_synonyms_are_of_keys_and_sections():
    assert set(keys.KEY_SYNONYMS.values()) <= set(KEYS)
    prefixes = {key[:i] for key in KEYS for i, c in enumerate(key) if c == "."}
    assert set(keys.SECTION_SYNONYMS.values()) <= prefixes


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("optimizer.learning_rate", "a number above 0"),
        ("train.label_smoothing", "a number in [0, 1)"),
        ("model.se_ratio", "a number in (0, 1] or None"),
        ("optimizer.name", "sgd, rmsprop, adamw"),
        ("model.output_stride", "None, 8, 16, 32"),
        ("quantize.weights.bits", "0, or 2 to 8"),
        ("quantize.weights.ranges", "follow, fixed, lsq"),
        ("quantize.fold", "True or False"),
        ("data.data_dir", "a directory"),
    ],
)
def test_what_a_key_takes_is_said(key: str, words: str):
    assert config_lib.allowed(key) == words


def test_every_key_says_what_it_takes():
    assert all(config_lib.allowed(key) for key in KEYS)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("optimiser.lr", "optimizer.learning_rate"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("train.learning_rate", "optimizer.learning_rate"),
        ("lr", "optimizer.learning_rate"),
        ("wd", "optimizer.weight_decay"),
        ("batch_size", "train.global_batch_size"),
        ("train.batch_size", "train.global_batch_size"),
        ("epochs", "train.num_epochs"),
        ("model.alpha", "model.width_multiplier"),
        ("model.widht", "model.width_multiplier"),
        ("model.dropout", "model.dropout_rate"),
        ("modle.name", "model.name"),
        ("model.image_size", "data.image_size"),
        ("scheduler.gamma", "schedule.decay_rate"),
        ("pruning.sparsity", "compress.pruning.sparsity"),
        ("quant.weights.bits", "quantize.weights.bits"),
        ("optimiser", "optimizer"),
        ("sede", "seed"),
        ("xyzzy", ""),
        ("model.xyzzy", ""),
    ],
)
def test_the_section_is_matched_before_the_key(key: str, meant: str):
    assert settings.suggest(KEYS, key) == meant


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("trian", "did you mean train?"),
        ("val", "did you mean evaluate?"),
        ("xyzzy", "allowed are train, evaluate."),
        ("", "allowed are train, evaluate."),
    ],
)
def test_an_unknown_name_is_answered_with_near_ones(given: str, message: str):
    assert settings.choices(given, ["train", "evaluate"]) == message


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("optimiser.lr", "is not a configuration key; did you mean optimizer.learning_rate?"),
        ("optimizer.xyzzy", "`mobilenet config optimizer` lists those of optimizer."),
        ("xyzzy", "`mobilenet config` lists all keys."),
        ("model", "it is a section, and `mobilenet config model` lists its keys."),
    ],
)  # fmt: skip
def test_an_unknown_key_is_answered(key: str, message: str):
    with pytest.raises(settings.UnknownKeyError) as caught:
        config_lib.update(config_lib.get_config(), {key: 1})
    assert str(caught.value).endswith(message)
