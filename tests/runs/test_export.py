"""`mobilenet export` on real run directories, float and quantised."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import TINY, Command

from mobilenet import config as config_lib
from mobilenet import deployment, rundir
from mobilenet.cli.main import main

needs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("ai_edge_litert", "onnxruntime")),
    reason="the runtimes are not installed",
)


@pytest.fixture(scope="module")
def quantised(mobilenet: Command, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "w8a8"
    mobilenet(
        "train", f"--config={TINY}", f"--workdir={workdir}", f"--config.pretrained={finished}",
        "--config.train.num_epochs=0", "--config.quantize.weights.bits=8",
        "--config.quantize.activations.bits=8",
    )  # fmt: skip
    return workdir


@needs
def test_an_integer_file_is_verified(mobilenet: Command, quantised: Path, tmp_path: Path):
    path = tmp_path / "files" / "m.tflite"
    done = mobilenet(
        "export", f"--workdir={quantised}", "--to=litert", f"--out={path}", "--verify",
        "--examples=50",
    )  # fmt: skip
    assert "litert (xnnpack)" in done.stdout and "the largest difference is 0" in done.stdout
    assert "on average, " in done.stdout and "cause: rounding that grows over" in done.stdout
    rows = json.loads((tmp_path / "files" / "m.tflite.rows.json").read_text())
    assert [row["runtime"] for row in rows] == ["litert (builtin)", "litert (xnnpack)"]
    for row in rows:
        assert row["bytes"] == path.stat().st_size and row["examples"] == 50
        assert row["agreement"] >= 0.9 and row["weight_bits"] == row["activation_bits"] == 8
        assert row["processor"] and row["commit"] and "phone" in row["latency_note"]
        for found in (row["logits"], row["probabilities"]):
            assert 0 <= found["mean"] <= found["largest"] and found["p99"] <= found["largest"]
        assert row["logits"]["largest"] < 20 * row["logit_step"] and row["cause"]
    assert rows[0]["float_operations"] == []
    metadata = json.loads((tmp_path / "files" / "m.tflite.json").read_text())
    assert metadata["labels"] == [str(digit) for digit in range(10)]
    assert metadata["preprocessing"]["image_size"] == 8
    assert metadata["config"]["quantize"]["weights"]["bits"] == 8


@needs
def test_a_float_run_becomes_any_format(mobilenet: Command, finished: Path, tmp_path: Path):
    for to in ("onnx", "stablehlo"):
        path = tmp_path / to
        mobilenet(
            "export", f"--workdir={finished}", f"--to={to}", f"--out={path}", "--verify",
            "--examples=50",
        )  # fmt: skip
        (row,) = json.loads((tmp_path / f"{to}.rows.json").read_text())
        assert row["agreement"] == 1.0 and row["top1"] == row["top1_jax"]
        assert row["cause"] == "sums in another order" and row["warning"] == ""


@pytest.mark.slow
def test_pictures_of_some_classes_are_matched_by_name(finished: Path, tmp_path: Path):
    """As those that converted ImageNet weights are evaluated on."""
    for name in ("7", "3"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(4):
            picture = np.full((8, 8), 50 * index, np.uint8)
            Image.fromarray(picture).save(tmp_path / "pictures" / name / f"{index}.png")
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    config = rundir.read_config(run)
    config_lib.update(
        config,
        {
            "data.name": "folder", "data.data_dir": str(tmp_path / "pictures"),
            "data.test_fraction": 1.0, "data.validation_fraction": 0.0, "data.train_examples": 0,
        },
    )  # fmt: skip
    (run / "config.json").write_text(config_lib.to_json(config))
    exported = deployment.Deployment(run)
    exported.write("stablehlo", tmp_path / "m")
    (row,) = exported.check("stablehlo", tmp_path / "m", "test", 0)
    assert row["examples"] == 8 and row["agreement"] == 1.0
    labels = [y for _, y in exported._data.evaluated("test")]
    assert sorted(np.concatenate(labels)) == 4 * [3] + 4 * [7]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--workdir is missing"),
        (["--workdir=x"], "--to is missing"),
        (["--workdir=x", "--to=coreml"], "allowed are litert, onnx, stablehlo"),
        (["--workdir=x", "--to=onnx"], "has no config.json"),
        (["--workdir=x", "--to=onnx", "--examples=-2"], "must be 0 or more"),
        (["--workdir=x", "--to=onnx", "--examples=-1"], "must be 0 or more"),
    ],
)
def test_command_lines_that_cannot_run(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["export", *argv]) == 2
    assert message in capsys.readouterr().err
