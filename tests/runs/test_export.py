"""`mobilenet export` on real run directories, float and quantised."""

import importlib.util
import json
from pathlib import Path

import pytest
from support import TINY, Command

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
    rows = json.loads((tmp_path / "files" / "m.tflite.rows.json").read_text())
    assert [row["runtime"] for row in rows] == ["litert (builtin)", "litert (xnnpack)"]
    for row in rows:
        assert row["bytes"] == path.stat().st_size and row["examples"] == 50
        assert row["agreement"] >= 0.9 and row["weight_bits"] == row["activation_bits"] == 8
        assert row["processor"] and row["commit"] and "phone" in row["latency_note"]
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


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--workdir is missing"),
        (["--workdir=x"], "--to is missing"),
        (["--workdir=x", "--to=coreml"], "allowed are litert, onnx, stablehlo"),
        (["--workdir=x", "--to=onnx"], "has no config.json"),
        (["--workdir=x", "--to=onnx", "--config.seed=1"], "drop --config"),
        (["--workdir=x", "--to=onnx", "--examples=-1"], "must be 0 or more"),
    ],
)
def test_command_lines_that_cannot_run(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["export", *argv]) == 2
    assert message in capsys.readouterr().err
