"""What a verb says is next: a command that a shell takes and the command line knows."""

import importlib
import shlex
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from support import ROOT, tiny

from mobilenet import config as config_lib
from mobilenet.cli import common, following
from mobilenet.cli.main import VERBS


def parsed(text: str) -> list[tuple[str, flags.FlagValues, dict[str, str], list[str]]]:
    """Verb, flags, overrides and arguments of each command, read as a shell and a verb do."""
    found = []
    for line in text.splitlines():
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
    path = Path("runs") / name
    evaluate, predict = parsed(following.trained(path, tiny(), ("train", "test")))
    assert evaluate[0] == "evaluate" and evaluate[1]["workdir"].value == str(path)
    assert evaluate[1]["split"].value == "test"
    assert predict[0] == "predict" and predict[3] == ["photo.jpg"]
    assert predict[1]["workdir"].value == str(path)


def test_a_folder_is_predicted_and_a_split_is_one_with_images():
    config = tiny(data__name="folder", data__data_dir="my images")
    evaluate, predict = parsed(following.trained(Path("r"), config, ("train", "validation")))
    assert predict[3] == ["my images"] and evaluate[1]["split"].value == "validation"
    (command,) = parsed(following.lines(following.train_on(Path("r"), config, Path("r_trained"))))
    assert command[2] == {"data.data_dir": "my images", "pretrained": "r"}
    assert command[1]["config"].value == following.EXPERIMENTS["folder"]


def test_the_experiments_exist():
    assert all((ROOT / path).is_file() for path in following.EXPERIMENTS.values())
    (command,) = parsed(following.lines(following.fine_tune(Path("runs/imagenet"))))
    assert command[1]["workdir"].value == "runs/imagenet_finetuned"
    assert command[2]["pretrained"] == "runs/imagenet"


def test_rules_survive_the_shell():
    rules = (("stem/.*", "bits=8"), ("a b", "bits=4"))
    text = following.command("quantize", workdir="r", to="t", config__quantize__rules=rules)
    (command,) = parsed(following.lines(text))
    parsed_rules = config_lib.parse(
        config_lib.get_config(), "quantize.rules", command[2]["quantize.rules"]
    )
    assert parsed_rules == rules
