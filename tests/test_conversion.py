"""Weights into run directories and out of runs: complete, exact, or refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from random_weights import assert_same, random_weights, small_weights

from mobilenet import config as config_lib
from mobilenet import conversion, inference, rundir
from mobilenet.config import ConfigError
from mobilenet.models import pretrained
from mobilenet.models.pretrained.weights import PretrainedError
from mobilenet.rundir import RunDirectoryError


def test_a_converted_run_is_used_like_any_other(tmp_path: Path):
    weights = small_weights()
    workdir = tmp_path / "runs" / "small"
    config = conversion.write_run(weights, workdir, labels=["a", "b", "c"])
    assert rundir.read_config(workdir) == config and rundir.status(workdir) == "done"
    assert config.model.num_classes == 3 and config.model.padding == "SYMMETRIC"
    assert config.data.normalization == "symmetric" and config.data.crop_fraction == 0.875
    stored = json.loads((workdir / "data.json").read_text())
    assert stored == {"mean": [0.5] * 3, "std": [0.5] * 3, "class_names": ["a", "b", "c"]}
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["step"] == 0 and summary["source"] == "random" and summary["macs"] > 0
    assert summary["params"] == sum(
        a.size for a in pretrained.native.flatten(weights.params).values()
    )
    assert summary["versions"]["jax"] and not list(tmp_path.glob("**/.small*"))

    restored = inference.read_checkpoint(workdir)
    assert restored.step == 0 and restored.items["opt_state"]
    predictor = inference.Predictor(config, restored.eval_variables, workdir)
    probabilities = predictor(np.zeros((2, 16, 16, 3), np.uint8))
    assert predictor.class_names == ["a", "b", "c"]
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert_same(conversion.read_run(workdir), weights)


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match="already holds a run or other files"):
        conversion.write_run(small_weights(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("outputs", "first", "last"),
    [(1000, "n01440764", "n15075141"), (1001, "background", "n15075141")],
)
def test_imagenets_classes_are_named_by_wordnet(outputs: int, first: str, last: str):
    weights = small_weights(outputs)
    names = conversion.settle_names(weights)
    assert (len(names), names[0], names[-1]) == (outputs, first, last)
    config = conversion.make_config(weights, names)
    assert (config.data.name, config.data.test_split) == ("imagenet2012", "validation")


def test_other_classes_take_labels_or_numbers():
    weights = small_weights()
    assert conversion.settle_names(weights) == ("0", "1", "2")
    assert conversion.settle_names(weights, ["crane", "cat", "crane"]) == (
        "crane (0)", "cat", "crane (2)",
    )  # fmt: skip
    with pytest.raises(PretrainedError, match="2 labels for 3 outputs"):
        conversion.settle_names(weights, ["a", "b"])
    assert conversion.settle_names(dataclasses.replace(weights, class_names=("x", "y", "z"))) == (
        "x", "y", "z",
    )  # fmt: skip
    assert conversion.settle_names(small_weights(0)) == ()


def test_overrides_win_and_must_fit_the_weights():
    weights = small_weights()
    config = conversion.make_config(weights, ("a", "b", "c"), {"model.padding": "SAME"})
    assert config.model.padding == "SAME"
    with pytest.raises(
        PretrainedError, match=r"of the wrong shape: .*classifier/bias \[3\] instead"
    ):
        conversion.make_config(weights, ("a", "b", "c"), {"model.num_classes": 4})
    with pytest.raises(ConfigError, match="did you mean model.padding"):
        conversion.make_config(weights, ("a", "b", "c"), {"model.pading": "SAME"})


def test_a_normalisation_that_the_user_sets_is_the_one_that_is_used(tmp_path: Path):
    run, key = tmp_path / "run", "data.normalization"
    conversion.write_run(small_weights(), run, overrides={key: "imagenet"})
    stored = json.loads((run / "data.json").read_text())
    assert (stored["mean"], stored["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with pytest.raises(PretrainedError, match="'dataset', for which no file has numbers; allowed"):
        conversion.write_run(small_weights(), tmp_path / "other", overrides={key: "dataset"})


@pytest.mark.parametrize(
    ("mean", "std", "normalization"),
    [
        ((0.5,) * 3, (0.5,) * 3, "symmetric"),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "imagenet"),
        ((0.1,) * 3, (0.5,) * 3, "dataset"),
    ],
)
def test_a_run_that_started_from_another_can_be_carried(
    mean: Any, std: Any, normalization: str, tmp_path: Path
):
    first, path = tmp_path / "first", tmp_path / "w.safetensors"
    conversion.write_run(dataclasses.replace(small_weights(), mean=mean, std=std), first)
    config = rundir.read_config(first)
    # As a fine-tuned run has it; its own pretrained is a path of this machine.
    config.data.normalization, config.pretrained = "pretrained", "runs/gone"
    (first / "config.json").write_text(config_lib.to_json(config))
    conversion.write_file(conversion.read_run(first), path, "mobilenet")
    back = pretrained.read("safetensors", path)
    config = conversion.write_run(back, tmp_path / "second")
    assert config.data.normalization == normalization
    assert json.loads((tmp_path / "second" / "data.json").read_text())["mean"] == list(mean)


@pytest.mark.parametrize("settings", [{}, {"padding": "SAME", "shortcut": "none"}])
@pytest.mark.parametrize("num_classes", [3, 0])
def test_this_projects_files_carry_a_run_to_the_last_bit(
    settings: dict[str, Any], num_classes: int, tmp_path: Path
):
    weights = dataclasses.replace(small_weights(num_classes, **settings), mean=(0.1, 0.2, 1 / 3))
    first, second, path = tmp_path / "first", tmp_path / "second", tmp_path / "w.safetensors"
    conversion.write_run(weights, first)
    out = conversion.read_run(first)
    assert conversion.write_file(out, path, "mobilenet") == ()
    back = pretrained.read("safetensors", path)
    assert_same(back, weights)
    assert back.settings == out.settings and back.class_names == out.class_names
    conversion.write_run(back, second)
    for name in ("config.json", "data.json"):
        assert (first / name).read_text() == (second / name).read_text()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvisions_names_carry_weights_to_the_last_bit(suffix: str, tmp_path: Path):
    weights = random_weights(0.35, 5, padding="SAME", bn_epsilon=1e-3)
    path = tmp_path / f"w{suffix}"
    notes = conversion.write_file(weights, path, "torchvision")
    assert [note.split(" ")[0] for note in notes] == [
        "model.padding",
        "model.bn_epsilon",
        "Images",
    ]
    back = pretrained.read("torchvision", path)
    assert_same(back, weights)
    if suffix == ".safetensors":  # whose metadata says what the names cannot
        assert back.settings == weights.settings and back.mean == weights.mean
        with safetensors.safe_open(path, framework="numpy") as file:
            assert file.metadata()["format"] == "pt"
    else:
        assert back.settings["model.padding"] == "SYMMETRIC"
        assert back.settings["data.normalization"] == "imagenet"


def test_torchvisions_names_of_other_tables_go_by_metadata(tmp_path: Path):
    weights = random_weights(1.0, 5, blocks=((1, 8, 1, 1), (3, 16, 2, 2)))
    conversion.write_file(weights, tmp_path / "w.safetensors", "torchvision")
    back = pretrained.read("torchvision", tmp_path / "w.safetensors")
    assert_same(back, weights)
    assert back.settings == weights.settings


@pytest.mark.parametrize(
    ("name", "names", "settings", "message"),
    [
        ("w.pth", "torchvision", {"se_ratio": 0.25}, "model.se_ratio is 0.25, but torchvision"),
        ("w.pth", "torchvision", {"shortcut": "expansion"}, "model.shortcut is 'expansion'"),
        ("w.pth", "torchvision", {"activation": "hard_swish"}, "model.activation is 'hard_swish'"),
        ("w.pth", "torchvision", {"stem_strides": 1}, "write the weights with --names=mobilenet"),
        ("w.pth", "mobilenet", {}, "A .pth file needs --names=torchvision"),
        ("w.onnx", "mobilenet", {}, "w.onnx must end in .safetensors or .pth"),
        ("w.pth", "timm", {}, "'timm' are not known; allowed are mobilenet, torchvision"),
    ],
)
def test_what_cannot_be_written_says_so(
    name: str, names: str, settings: dict[str, Any], message: str, tmp_path: Path
):
    weights = random_weights(0.35)
    changed = {f"model.{key}": value for key, value in settings.items()}
    weights = dataclasses.replace(weights, settings={**weights.settings, **changed})
    with pytest.raises(PretrainedError, match=message):
        conversion.write_file(weights, tmp_path / name, names)
    assert not list(tmp_path.iterdir())


def test_files_are_not_overwritten(tmp_path: Path):
    (tmp_path / "w.safetensors").write_text("mine")
    with pytest.raises(PretrainedError, match="exists already; give --to a new file"):
        conversion.write_file(small_weights(), tmp_path / "w.safetensors", "mobilenet")
    assert (tmp_path / "w.safetensors").read_text() == "mine"


def test_settings_are_configuration_keys():
    known = dict(config_lib.flatten(config_lib.get_config()))
    assert set(small_weights().settings) <= set(known)


def test_paths_that_cannot_be_used_are_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(RunDirectoryError, match="could not be|cannot be created"):
            conversion.write_run(small_weights(), path)
        path = path.with_name(f"{path.name}.pth")
        with pytest.raises(RunDirectoryError, match="could not be|cannot be created"):
            conversion.write_file(random_weights(0.1), path, "torchvision")
    with pytest.raises(PretrainedError, match="cannot be read: File name too long"):
        pretrained.read("keras", tmp_path / ("x" * 300))
