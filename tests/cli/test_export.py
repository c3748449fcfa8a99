"""`mobilenet export` as a user types it: flags that would do nothing, and where the file goes."""

import importlib.util
import json
from pathlib import Path

import pytest
from random_weights import small_weights

from mobilenet import config as config_lib
from mobilenet import conversion, deployment
from mobilenet.cli import export
from mobilenet.cli.main import main
from mobilenet.export.operations import ExportError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float run."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    conversion.write_run(small_weights(), workdir, labels=["a", "b", "c"])
    return workdir


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--to=litert", "--integer_io"],
            "--integer_io needs a quantised run and --to=litert; a float run was given",
        ),
        (["--to=onnx", "--integer_io"], "--integer_io needs a quantised run and --to=litert"),
        (["--to=onnx", "--split=train"], "--split goes with --verify; add it, or drop --split"),
        (["--to=onnx", "--examples=5"], "--examples goes with --verify"),
        (["--to=onnx", "--out=x.h5"], "--out=x.h5 ends in .h5, and the file is onnx; end it in"),
        (["--to=litert", "--out=x.onnx"], "end it in .tflite"),
        (["--to=stablehlo", "--out=x.json"], "end it in .stablehlo"),
    ],
)
def test_flags_that_would_do_nothing_or_mislead_are_refused(
    argv: list[str], message: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["export", f"--workdir={run}", *argv]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_codes_of_a_quantised_run_go_into_tflite_files_alone():
    values = export.flags.FlagValues()
    export.define(values)
    values(["export", "--integer_io"])
    config = config_lib.get_config()
    config.quantize.weights.bits = config.quantize.activations.bits = 8
    export._refuse_without_effect(values, "litert", config)
    with pytest.raises(ValueError, match="--to=litert; --to=onnx was given"):
        export._refuse_without_effect(values, "onnx", config)


def test_python_is_refused_the_same(run: Path, tmp_path: Path):
    with pytest.raises(ExportError, match="need a quantised run and a TFLite file"):
        deployment.Deployment(run).write("stablehlo", tmp_path / "m", integer_io=True)


def test_a_directory_takes_the_file_in_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = ["export", f"--workdir={run}", "--to=stablehlo"]
    folder = tmp_path / "folder"
    folder.mkdir()
    for out, path in (
        (f"{folder}", folder / "model.stablehlo"),
        (f"{tmp_path}/new/", tmp_path / "new" / "model.stablehlo"),
        (f"{tmp_path}/m", tmp_path / "m"),
    ):
        assert main([*argv, f"--out={out}"]) == 0
        assert capsys.readouterr().out.startswith(f"{path}: ")
        assert json.loads(path.with_name(f"{path.name}.json").read_text())["labels"] == list("abc")
        assert not list(path.parent.glob(".*"))


def test_a_path_that_cannot_be_written_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("")
    argv = ["export", f"--workdir={run}", "--to=stablehlo"]
    for out in (f"{tmp_path}/file/m", f"{tmp_path}/{'x' * 300}"):
        assert main([*argv, f"--out={out}"]) == 1
        error = capsys.readouterr().err
        assert f"{out} could not be written: " in error and error.count("\n") == 1


def test_archives_without_flatbuffers_say_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "flatbuffers" else find(name)
    )
    for to in ("stablehlo", "litert"):
        assert main(["export", f"--workdir={run}", f"--to={to}", f"--out={tmp_path}"]) == 2
        error = capsys.readouterr().err
        assert "FlatBuffers, which is not installed; `pip install -e '.[export]'`" in error
    assert not list(tmp_path.iterdir())
