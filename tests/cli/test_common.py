"""What the verbs share: paths with a tilde, and overrides of how a run is carried out."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from PIL import Image
from random_weights import random_weights
from support import write_run

from mobilenet import conversion, rundir
from mobilenet.cli import common
from mobilenet.cli.main import VERBS, main
from mobilenet.config import ConfigError


@pytest.mark.parametrize("verb", VERBS)
def test_a_tilde_is_the_home_directory_in_every_flag(verb: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    module: Any = importlib.import_module(f"mobilenet.cli.{verb}")
    values = flags.FlagValues()
    module.define(values)
    names = [name for name in values if values[name].flag_type() == "string"]
    assert set(names) & {"workdir", "config", "data_dir", "root"}
    argv = [f"--{name}=~/a" for name in names]
    assert common.parse(verb, module, values, [*argv, "~/b.jpg"]) == ["/home/me/b.jpg"]
    assert {values[name].value for name in names} == {"/home/me/a"}


def test_a_tilde_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    conversion.write_file(random_weights(0.35, 2), home / "m.pth", "torchvision")
    (home / "labels.txt").write_text("a\nb\n")
    argv = ["convert", "--from=torchvision", "~/m.pth", "--to=~/run", "--labels=~/labels.txt"]
    assert main(argv) == 0
    assert main(["convert", "--workdir=~/run", "--to=~/out.safetensors"]) == 0
    (home / "mine.py").write_text(
        "from mobilenet.config import get_config as base\n"
        "def get_config(arg=''):\n  c = base()\n  c.pretrained = '~/run'\n  return c\n"
    )
    assert main(["cost", "--config=~/mine.py:smoke", "--config.model.num_classes=2"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert {path.name for path in home.iterdir()} >= {"run", "out.safetensors"}


def test_overrides_of_how_a_run_is_carried_out_are_taken(tmp_path: Path):
    run = write_run(tmp_path / "run", 0.9, {})
    wanted = {"data.data_dir": "moved", "eval.batch_size": "7", "data.num_workers": "2"}
    config = common.run_config(run, wanted, verb="export")
    assert (config.data.data_dir, config.eval.batch_size) == ("moved", 7)
    stored = rundir.read_config(run)
    assert common.run_config(run, {}, verb="export").to_dict() == stored.to_dict()
    assert stored.data.data_dir == "/somewhere"
    for overrides, message in (
        ({"model.padding": "SYMMETRIC", "seed": "1"}, "model.padding, seed would change what the"),
        ({"data.name": "mnist"}, "data.name would change what the run computes; export takes"),
        ({"eval.batch_size": "0"}, "eval.batch_size is 0; it must be finite and at least 1"),
        ({"data.dir": "x"}, "data.dir is not a configuration key; did you mean data.data_dir?"),
    ):
        with pytest.raises(ConfigError, match=message):
            common.run_config(run, overrides, verb="export")
    assert common.run_config(run, {"data.name": "mnist"}, verb="e", also=("data.name",))


@pytest.mark.parametrize(
    "argv",
    [
        ["predict", "a.jpg"],
        ["export", "--to=onnx"],
        ["evaluate"],
        ["quantize", "--sensitivity=4"],
        ["shrink", "--to=other", "--macs=0.5"],
        ["shrink"],
    ],
)
def test_verbs_that_use_a_run_take_the_same_overrides(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = write_run(tmp_path / "run", 0.9, {})
    stored = {"class_names": list("0123456789"), "mean": [0.5] * 3, "std": [1.0] * 3}
    rundir.write_json(run / "data.json", stored)
    overrides = ["--config.data.data_dir=moved", "--config.log.every_steps=3"]
    assert main([*argv, f"--workdir={run}", *overrides]) == 1  # it has no checkpoint
    assert "checkpoint" in capsys.readouterr().err
    assert main([*argv, f"--workdir={run}", *overrides, "--config.seed=1"]) == 2
    error = capsys.readouterr().err
    assert "--config.data.data_dir" in error and error.count("\n") == 1


def test_data_that_has_moved_is_named_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, moved = tmp_path / "run", tmp_path / "moved"
    places = {
        "data.name": "folder", "data.data_dir": str(tmp_path / "gone"), "data.image_size": 32,
        "data.test_fraction": 0.5, "data.validation_fraction": 0.0,
    }  # fmt: skip
    table = {"blocks": ((1, 8, 1, 1), (6, 8, 1, 2)), "stem_features": 8, "head_features": 16}
    weights = random_weights(1.0, 2, **table)
    conversion.write_run(weights, run, labels=["a", "b"], overrides=places)
    for name in ("a", "b"):
        (moved / name).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (32, 32), (60 * index, 9, 9)).save(moved / name / f"{index}.png")
    argv = ["export", f"--workdir={run}", "--to=stablehlo", "--verify", f"--out={tmp_path / 'm'}"]
    assert main(argv) == 2
    assert "gone" in capsys.readouterr().err
    assert main([*argv, f"--config.data.data_dir={moved}"]) == 0
    assert " of test; latency" in capsys.readouterr().out
    cut = ["shrink", f"--workdir={run}", "--macs=0.9", "--score=taylor", "--examples=2"]
    target = tmp_path / "cut"
    assert main([*cut, f"--to={target}"]) == 2
    assert "gone" in capsys.readouterr().err
    assert main([*cut, f"--to={target}", f"--config.data.data_dir={moved}"]) == 0
    assert rundir.read_config(target).data.data_dir == str(moved)
