"""`mobilenet convert` as a user types it."""

import json
from pathlib import Path

import pytest
from random_weights import assert_same, random_weights

from mobilenet import conversion, inference, rundir
from mobilenet.cli.main import main
from mobilenet.models import pretrained


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A state dict with torchvision's names, 5 classes."""
    path = tmp_path / "model.pth"
    conversion.write_file(random_weights(0.35, 5), path, "torchvision")
    return path


def test_in_and_out_again(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, out = tmp_path / "run", tmp_path / "out.safetensors"
    labels = tmp_path / "labels.txt"
    labels.write_bytes(b"\xef\xbb\xbfa\r\nb\r\nc\r\n\r\nd\r\ne\r\n")
    argv = ["convert", "--from=torchvision", str(checkpoint), f"--to={run}"]
    assert main([*argv, f"--labels={labels}", "--config.data.image_size=96"]) == 0
    assert capsys.readouterr().out.replace(" \\\n      ", " ") == (
        f"{run}: MobileNetV2 0.35, 5 outputs, 96 pixels, padding SYMMETRIC, BN epsilon 1e-05, "
        "images imagenet\n"
        "The file does not say how images are prepared; assumed is "
        "--config.model.padding=SYMMETRIC, --config.model.bn_epsilon=1e-05, "
        "--config.data.normalization=imagenet, --config.data.crop_fraction=0.875. "
        "Change it with --config.KEY=VALUE.\n"
        f"next: mobilenet predict --workdir={run} photo.jpg\n"
        "  or: mobilenet train --config=experiments/transfer/finetune.py "
        f"--workdir={run}_finetuned --config.pretrained={run} --config.data.data_dir=IMAGES\n"
    )
    assert rundir.read_config(run).data.image_size == 96
    assert json.loads((run / "data.json").read_text())["class_names"] == list("abcde")
    assert "sha256" in json.loads((run / "summary.json").read_text())["source"]
    assert inference.read_checkpoint(run, "0").step == 0

    assert main(["convert", f"--workdir={run}", f"--to={out}"]) == 0
    assert f"{out}: run, step 0, with mobilenet's names" in capsys.readouterr().out
    assert_same(pretrained.read("safetensors", out), random_weights(0.35, 5))
    pth = tmp_path / "out.pth"
    assert main(["convert", f"--workdir={run}", f"--to={pth}"]) == 0
    assert pth.read_bytes() == checkpoint.read_bytes()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--from=keras", "m.h5"], "--to is missing"),
        (["--to=x"], "Give either --from=FORMAT and a file"),
        (["--to=x", "--from=keras", "--workdir=y", "m.h5"], "Give either --from=FORMAT"),
        (["--to=x", "--from=keras"], "0 files given; write mobilenet convert --from=keras"),
        (["--to=x", "--from=keras", "nowhere.h5"], "nowhere.h5 does not exist"),
        (["--to=x", "--from=onnx", "nowhere.h5"], "'onnx' is not known; allowed are keras"),
        (["--to=x", "--from=keras", "m", "--names=torchvision"], "--names goes with --workdir"),
        (["--to=x", "--from=keras", "m", "--labels=none"], "--labels=none cannot be read"),
        (
            ["--to=x", "--from=keras", "m", "--config.model.pading=SAME"],
            "did you mean --config.model.padding?",
        ),
        (["--to=x.pth", "--workdir=/proc"], "no config.json"),
        (["--to=x.pth", "--workdir=y", "--labels=z"], "--config and --labels go with --from"),
        (["--to=x.pth", "--workdir=y", "z"], "'z' is not a flag"),
    ],
)
def test_commands_that_cannot_run(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["convert", *argv]) == 2
    assert message in capsys.readouterr().err


def test_labels_are_text_in_utf_8(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    labels, run = tmp_path / "labels.txt", tmp_path / "run"
    argv = ["convert", "--from=torchvision", str(checkpoint), f"--to={run}", f"--labels={labels}"]
    labels.write_text("a\nb\nc\nd\ne\n", encoding="utf-16")
    assert main(argv) == 2
    assert "labels.txt is not text in UTF-8; save it as UTF-8" in capsys.readouterr().err
    # What some call line ends may be part of a name.
    labels.write_text("a\u2028a\nb\x85\nc\n\u00e4\ne\n", encoding="utf-8")
    assert main(argv) == 0
    names = json.loads((run / "data.json").read_text())["class_names"]
    assert names == ["a\u2028a", "b", "c", "\u00e4", "e"]


def test_broken_files_end_with_a_sentence(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    run = tmp_path / "run"
    assert main(["convert", "--from=torchvision", str(checkpoint), f"--to={run}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mobilenet convert: model.pth is truncated") and error.count("\n") == 1
    assert not run.exists()
