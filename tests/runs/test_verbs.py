"""The command lines as a user types them: output, files, exit codes, and what they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ROOT, TINY, Command, metric_rows, summary

from mobilenet.cli.main import main


def test_train_leaves_a_complete_record(finished: Path):
    found = summary(finished)
    assert found["status"] == "done" and found["step"] == 64
    assert set(found) >= {
        "params", "macs", "versions", "device", "processor", "commit", "wall_seconds", "validation",
        "test", "first_step_seconds", "best_checkpoint", "examples", "seed",
    }  # fmt: skip
    assert found["versions"]["jax"] and found["params"] > 0
    rows = metric_rows(finished)
    assert [r["step"] for r in rows if r["split"] == "validation"] == [16, 32, 48, 64]
    train_rows = [r for r in rows if r["split"] == "train"]
    assert train_rows[-1]["loss"] < train_rows[0]["loss"]
    assert list((finished / "events").iterdir())
    assert json.loads((finished / "config.json").read_text())["seed"] == 0


def test_evaluate_prints_and_writes_the_same(mobilenet: Command, finished: Path, tmp_path: Path):
    done = mobilenet("evaluate", f"--workdir={finished}", "--split=test")
    report = json.loads((finished / "evaluation_test.json").read_text())
    assert report["top1"] == summary(finished)["test"]["top1"]
    assert f"top-1 {100 * report['top1']:.2f} %" in done.stdout
    matrix = np.array(report["confusion_matrix"])
    assert matrix.sum() == report["examples"] == 360
    assert np.trace(matrix) / 360 == report["top1"]
    recall = np.diag(matrix) / matrix.sum(1)
    np.testing.assert_allclose(report["per_class"]["recall"], recall)
    rows = np.load(finished / "evaluation_test.npz")
    assert rows["top"].shape == (360, 5)
    small = mobilenet(
        "evaluate", f"--workdir={finished}", "--config.eval.batch_size=7", "--cpu_devices=2"
    )
    assert small.stdout.splitlines()[1] == done.stdout.splitlines()[1]


def test_evaluate_takes_the_best_checkpoint(mobilenet: Command, finished: Path):
    done = mobilenet("evaluate", f"--workdir={finished}", "--split=validation", "--checkpoint=best")
    assert f"step {summary(finished)['best_checkpoint']}" in done.stdout


def test_predict_classifies_files_and_names_broken_ones(
    mobilenet: Command, finished: Path, tmp_path: Path
):
    good, broken = tmp_path / "good.png", tmp_path / "broken.png"
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(good)
    broken.write_bytes(good.read_bytes()[:40])
    done = mobilenet(
        "predict", f"--workdir={finished}", "--format=json", str(good), str(broken),
        str(tmp_path / "no.png"), ok=False,
    )  # fmt: skip
    assert done.returncode == 2
    shown = json.loads(done.stdout)
    assert shown["file"] == str(good) and len(shown["classes"]) == 5
    assert "broken.png" in done.stderr and "No such file" in done.stderr
    plain = mobilenet("predict", f"--workdir={finished}", str(good))
    head, line = plain.stdout.splitlines()
    assert head.startswith("file ") and line.startswith(f"{good}  ") and line.count(".") == 6


def test_cost_prints_the_papers_numbers(capsys: pytest.CaptureFixture[str]):
    config = ROOT / "experiments/baselines/imagenet_paper.py"
    assert main(["cost", f"--config={config}", "--config.model.num_classes=1000"]) == 0
    text = capsys.readouterr().out
    assert "3,504,872" in text and "300,774,272" in text and "1,505,280" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert main(["cost", f"--config={config}", "--config.model.num_classes=1000", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["macs"] == 300_774_272


def test_help_lists_verbs_and_flags(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    assert "evaluate" in capsys.readouterr().out
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--workdir" in text and "--config.KEY=VALUE" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "'trian' is not a verb; did you mean train?"),
        (["eval"], "'eval' is not a verb; did you mean evaluate?"),
        (["help", "fit"], "'fit' is not a verb; did you mean train?"),
        (["xyzzy"], "'xyzzy' is not a verb; `mobilenet help` lists them."),
        (["train"], "--workdir is missing"),
        (["train", "--workdir=x-none"], "--config is missing"),
        (["train", "--workdir=x", "--config=nope.py"], "'nope.py', which is not a file"),
        (["train", "--workdir=x", "config.seed=1"], "did you mean --config.seed=1?"),
        (["train", "--workdir=x", "extra"], "'extra' is not a flag"),
        (["train", "--wrkdir=x"], "--wrkdir is not a flag of train; did you mean --workdir?"),
        (["train", "--lr=1"], "did you mean --config.optimizer.learning_rate?"),
        (["train", "--data.data_dir=x"], "did you mean --config.data.data_dir?"),
        (["train", "--xyzzy=1"], "`mobilenet help train` lists the flags."),
        (["train", "--threads=x"], "--threads is 'x'; it must be a whole number."),
        (["train", "--threads=1.5e0"], "--threads is '1.5e0'; it must be a whole number."),
        (["shrink", "--macs=half"], "--macs is 'half'; it must be a number."),
        (["cost", "--json=maybe"], "--json is 'maybe'; write --json or --nojson."),
        (["quantize", "--of=x"], "--of is 'x'; allowed are weights, activations."),
        (["train", "--workdir"], "--workdir has no value; write --workdir=DIR."),
        (
            ["train", "--workdir=x", f"--config={TINY}", "--config.data.image_size=1"],
            "or lower --config.model.stem_strides or --config.model.stage_strides.",
        ),
        (
            ["train", "--workdir=x", f"--config={TINY}", "--config.optimiser.lr=2"],
            "did you mean --config.optimizer.learning_rate?",
        ),
        (["train", "--workdir=x", f"--config={TINY}", "--config.seed"], "has no value"),
        (
            ["train", "--workdir=x", f"--config={TINY}", "--config.model.widht=2"],
            "model.widht is not a configuration key",
        ),
        (
            ["train", "--workdir=x", f"--config={TINY}", "--config.seed=many"],
            "seed is 'many'; it must be a whole number",
        ),
        (
            ["train", "--workdir=x", f"--config={TINY}", "--config.model.remat=maybe"],
            "it must be true or false",
        ),
        (
            ["train", "--workdir=x", f"--config={TINY}", "--config.model.stage_strides=1"],
            "it must be a tuple",
        ),
        (["train", "--workdir=x", f"--config={TINY}:large"], "allowed are none and 'smoke'"),
        (["train", "--workdir=x", f"--config={TINY}", "--cpu_devices=-1"], "it must be 0 or more"),
        (["evaluate", "--workdir=/proc"], "no config.json"),
        (["evaluate", "--workdir=x", "--split=exam"], "allowed are train, validation, test"),
        (["predict", "--workdir=/proc"], "No image was given"),
        (["predict", "--workdir=/proc", "a.jpg"], "no config.json"),
        (["prepare"], "Give either --dataset"),
        (["prepare", "--from_tfrecord=/proc/none", "--data_dir=x"], "/proc/none"),
        (
            ["cost", f"--config={ROOT}/experiments/baselines/imagenet_paper.py"],
            "give --config.model.num_classes=1000",
        ),
    ],
)
def test_bad_commands_are_one_sentence_and_exit_2(
    argv: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("mobilenet")
    assert "Traceback" not in err


def test_experiment_files_with_mistakes_say_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for text, message in (
        ("x = 1", "needs get_config"),
        ("def get_config(arg=''):\n  return (", "is not Python"),
        (
            "from mobilenet import config as b\ndef get_config(arg=''):\n  c = b.get_config()\n"
            "  c.model.depht = 3\n  return c",
            "depht",
        ),
    ):
        file = tmp_path / "experiment.py"
        file.write_text(text)
        assert main(["cost", f"--config={file}"]) == 2
        assert message in capsys.readouterr().err


def test_checkpoints_that_do_not_exist_are_listed(mobilenet: Command, finished: Path):
    done = mobilenet("evaluate", f"--workdir={finished}", "--checkpoint=13", ok=False)
    assert done.returncode == 1 and "no checkpoint of step 13; it has" in done.stderr
    done = mobilenet("evaluate", f"--workdir={finished}", "--checkpoint=last", ok=False)
    assert "allowed are result, newest, best" in done.stderr
