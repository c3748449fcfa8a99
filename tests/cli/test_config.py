"""`mobilenet config`: keys with meaning, default and what is allowed, and the page of them."""

from pathlib import Path

import pytest
from support import ROOT, write_run

from mobilenet import keys
from mobilenet.cli import config as verb
from mobilenet.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["config", *argv]) == 0
    return capsys.readouterr().out


def test_the_page_is_current():
    page = ROOT / "mobilenet" / "CONFIG.md"
    assert page.read_text() == verb.page(keys.MEANINGS), (
        "write it anew: mobilenet config --markdown > mobilenet/CONFIG.md"
    )


def test_every_key_is_listed_within_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    out = run(capsys)
    shown = [line.split(" = ")[0].strip() for line in out.splitlines() if line.startswith("  ")]
    assert [key for key in shown if key in keys.MEANINGS] == list(keys.MEANINGS)
    assert max(map(len, out.splitlines())) <= 80
    assert "--config.optimizer.learning_rate=0.2" in out


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("eval", ["eval.batch_size", "eval.every_epochs"]),
        ("every_*", ["compress.pruning.every_steps", "eval.every_epochs", "checkpoint.every_steps",
                     "log.every_steps"]),
        ("mixup", ["augment.mixup_alpha"]),
        ("lr", ["optimizer.learning_rate"]),
        ("--config.seed", ["seed"]),
        ("quantize.w*", [k for k in keys.MEANINGS if k.startswith("quantize.weights.")]),
    ],
)  # fmt: skip
def test_a_pattern_finds_keys(pattern: str, found: list[str]):
    assert verb.find([pattern]) == found


def test_a_pattern_that_finds_nothing_is_answered(capsys: pytest.CaptureFixture[str]):
    assert main(["config", "optimiser.momentun"]) == 2
    assert "did you mean --config.optimizer.momentum?" in capsys.readouterr().err


def test_values_of_a_file_or_a_run_are_marked(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    file = f"--config={ROOT}/experiments/baselines/cifar10.py"
    out = run(capsys, file, "data", "train", "--config.train.label_smoothing=0.1")
    assert "* data.name = cifar10" in out and "default digits; allowed: text" in out
    assert "* train.label_smoothing = 0.1" in out and "  train.patience = 0" in out
    changed = run(capsys, file, "data", "--changed")
    assert "data.name" in changed and "data.image_size" not in changed
    path = write_run(tmp_path / "run", 0.9, {"optimizer.name": "adamw"})
    out = run(capsys, f"--workdir={path}", "--changed")
    assert "* optimizer.name = adamw" in out and "* data.data_dir = /somewhere" in out
    assert run(capsys, "--changed") == "No key differs from its default.\n"
    assert main(["config", file, f"--workdir={path}"]) == 2
