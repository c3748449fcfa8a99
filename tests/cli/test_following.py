"""What a verb says is next: a command that a shell takes and the command line knows."""

import importlib
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from support import ROOT, tiny, write_run

from mobilenet import config as config_lib
from mobilenet import experiment
from mobilenet.cli import common, following
from mobilenet.cli.main import VERBS


def parsed(text: str) -> list[tuple[str, flags.FlagValues, dict[str, str], list[str]]]:
    """Verb, flags, overrides and arguments of each command, read as a shell and a verb do."""
    found = []
    for line in text.replace(" \\\n", " ").splitlines():
        label, program, verb, *words = shlex.split(line)
        assert label in ("next:", "or:") and program == "mobilenet" and verb in VERBS
        module: Any = importlib.import_module(f"mobilenet.cli.{verb}")
        values = flags.FlagValues()
        module.define(values)
        words, overrides = common.split_overrides(words)
        rest = common.parse(verb, module, values, words)
        known = [key for key, _ in config_lib.flatten(config_lib.get_config())]
        assert rest is not None and set(overrides) <= set(known)
        found.append((verb, values, overrides, rest))
    return found


@pytest.mark.parametrize("name", ["run", "a run", "it's; $(ls)"])
def test_a_run_is_evaluated_and_predicts(name: str):
    path = Path("runs/" + "of-last-week/" * 2) / name  # too wide for one line of 80 columns
    text = following.trained(path, tiny(), ("train", "test"))
    assert max(map(len, text.splitlines())) <= 80
    evaluate, predict = parsed(text)
    assert evaluate[0] == "evaluate" and evaluate[1]["workdir"].value == str(path)
    assert evaluate[1]["split"].value == "test"
    assert predict[0] == "predict" and predict[3] == ["photo.jpg"]
    assert predict[1]["workdir"].value == str(path)


def test_a_folder_is_predicted_and_a_split_is_one_with_images():
    config = tiny(data__name="folder", data__data_dir="my images")
    evaluate, predict = parsed(following.trained(Path("r"), config, ("train", "validation")))
    assert predict[3] == ["my images"] and evaluate[1]["split"].value == "validation"


def test_what_is_cut_is_trained_by_an_experiment_that_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)

    def command(run: Path, **data: Any) -> tuple[str, dict[str, str]]:
        words = following.train_on(run, tiny(**data), Path("trained"))
        ((_, values, overrides, _),) = parsed(following.lines(words))
        return str(values["config"].value), overrides

    same = experiment.load_config(following.EXPERIMENTS["digits"], {})
    small = experiment.load_config(f"{following.EXPERIMENTS['digits']}:smoke", {})
    narrow = experiment.load_config(
        following.EXPERIMENTS["digits"], {"model.width_multiplier": "0.5"}
    )
    for name, config, file in (
        ("narrow", narrow, "FILE.py"),
        ("same", same, following.EXPERIMENTS["digits"]),
        ("small", small, f"{following.EXPERIMENTS['digits']}:smoke"),
        ("other", tiny(model__width_multiplier=0.6), "FILE.py"),
    ):
        run = write_run(tmp_path / name, 0.9, {})
        (run / "config.json").write_text(config_lib.to_json(config))
        assert command(run) == (file, {"pretrained": str(run)})
    run = write_run(tmp_path / "folder", 0.9, {})
    file, overrides = command(run, data__name="folder", data__data_dir="my images")
    assert file == following.EXPERIMENTS["folder"]
    assert overrides == {"data.data_dir": "my images", "pretrained": str(run)}


def test_the_experiments_exist():
    assert all((ROOT / path).is_file() for path in following.EXPERIMENTS.values())
    (command,) = parsed(following.lines(following.fine_tune(Path("runs/imagenet"))))
    assert command[1]["workdir"].value == "runs/imagenet_finetuned"
    assert command[2]["pretrained"] == "runs/imagenet"


def test_a_program_that_is_not_on_the_path_is_named_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [".venv/bin/mobilenet", "train"])
    assert following.command("compare", workdir="r")[0] == ".venv/bin/mobilenet"
    monkeypatch.setattr(sys, "argv", ["/site/mobilenet/__main__.py", "train"])
    assert following.command("compare", workdir="r")[0] == "mobilenet"
    (tmp_path / "mobilenet").touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [".venv/bin/mobilenet", "train"])
    assert following.command("compare", workdir="r")[0] == "mobilenet"


def test_rules_survive_the_shell():
    rules = (("stem/.*", "bits=8"), ("a b", "bits=4"))
    text = following.command("quantize", workdir="r", to="t", config__quantize__rules=rules)
    (command,) = parsed(following.lines(text))
    parsed_rules = config_lib.parse(
        config_lib.get_config(), "quantize.rules", command[2]["quantize.rules"]
    )
    assert parsed_rules == rules
