"""`mobilenet predict`: which files it takes, in which order, and what it prints."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from random_weights import small_weights

from mobilenet import build, conversion, inference, rundir
from mobilenet.cli import columns, predict
from mobilenet.cli.main import main

ODD = ('comma, "quote".png', "new\nline\r.png", "\udcff\udcfe.png", "猫.png")


def write_image(path: Path, value: int = 0, size: int = 16, kind: str = "png") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(value)
    with open(path, "wb") as file:
        Image.fromarray(rng.integers(0, 256, (size, size + 4, 3), np.uint8)).save(file, kind)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "run"
    conversion.write_run(small_weights(3), workdir, labels=("cat", "dog, a", "n01440764"))
    return workdir


def test_files_folders_and_patterns_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog
):
    monkeypatch.chdir(tmp_path)
    names = ["b/2.png", "b/10.jpg", "b/deep/er/1.WEBP", "a[1].png", "c/x.bmp", "c/y.png", "odd"]
    for name in names:
        write_image(Path(name))
    Path("b/notes.txt").write_text("no image")
    Path("b/.hidden.png").write_text("no image")
    assert predict.find(["odd", "b", "a[1].png"]) == (
        ["odd", "b/10.jpg", "b/2.png", "b/deep/er/1.WEBP", "a[1].png"], []
    )  # fmt: skip
    assert "b: files left out: 2 (1 .txt, 1 hidden)." in caplog.text
    assert predict.find(["**/*.png", "c/*"])[0] == [
        "a[1].png", "b/2.png", "c/y.png", "c/x.bmp", "c/y.png",
    ]  # fmt: skip
    found, missing = predict.find(["b/**", "none*", "*.t?t", "lost.png", "b/n*"])
    assert found == ["b/10.jpg", "b/2.png", "b/deep/er/1.WEBP", "lost.png"]
    assert missing == [
        "none*: no file matches the pattern.",
        "*.t?t: no file matches the pattern.",
        "b/n*: 1 files match, but none has the ending of an image format.",
    ]
    assert "b/**: 1 files left out that are no images." in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert predict.find(["empty"]) == ([], ["empty: the folder holds no images."])


@pytest.mark.parametrize("batch_size", [2, 256])
def test_files_are_classified_as_evaluation_sees_them(
    run: Path, tmp_path: Path, batch_size: int, monkeypatch: pytest.MonkeyPatch
):
    config = rundir.read_config(run)
    config.eval.batch_size = batch_size
    paths = [str(write_image(tmp_path / f"{i}.png", i, 16 + i)) for i in range(5)]
    paths.insert(2, str(tmp_path / "broken.png"))
    Path(paths[2]).write_bytes(b"no image")
    variables = inference.read_checkpoint(run).eval_variables
    predictor = inference.Predictor(config, variables, run)
    found = list(predictor.files([*paths, "lost.png"]))
    assert [each.path for each in found] == [*paths, "lost.png"]
    assert found[2].probabilities is None and "no known image format" in found[2].error
    assert found[6].error == "lost.png: No such file or directory."
    for each in (found[i] for i in (0, 1, 3, 4, 5)):
        expected = predictor(predictor.load(Path(each.path).read_bytes())[None])[0]
        assert each.probabilities is not None and not each.error
        np.testing.assert_allclose(each.probabilities, expected, rtol=1e-4)


def test_odd_names_survive_in_csv_and_json(
    run: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
):
    paths = [write_image(tmp_path / name) for name in ODD]
    listed = sorted(map(str, paths))
    argv = ["predict", f"--workdir={run}", str(tmp_path), "--top=2"]
    assert main([*argv, "--format=csv"]) == 0
    text = capfdbinary.readouterr().out.decode("utf-8", "surrogateescape")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["file"] for row in rows[::2]] == listed
    assert [row["rank"] for row in rows] == ["1", "2"] * len(ODD)
    names = rundir.read_json(run / "data.json")["class_names"]
    assert all(row["name"] == names[int(row["class"])] for row in rows)
    assert main([*argv, "--format=json"]) == 0
    out = capfdbinary.readouterr().out
    found = [json.loads(line) for line in out.decode("ascii").splitlines()]
    assert [each["file"] for each in found] == listed
    assert [os.path.exists(each["file"]) for each in found] == [True] * len(ODD)
    for one, best in zip(found, rows[::2], strict=True):
        assert len(one["classes"]) == 2
        assert f"{one['classes'][0]['probability']:.6f}" == best["probability"]


def test_unreadable_files_are_named_and_the_rest_is_classified(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    good = write_image(tmp_path / "good.png")
    broken = tmp_path / "broken.png"
    broken.write_bytes(good.read_bytes()[:60])
    argv = ["predict", f"--workdir={run}", str(broken), "lost.png", str(good), "none*"]
    assert main(argv) == 2
    done = capsys.readouterr()
    assert done.out.splitlines()[1].startswith(str(good)) and len(done.out.splitlines()) == 2
    for part in (f"{broken}: ", "lost.png: No such file", "none*: no file matches the pattern"):
        assert f"mobilenet predict: {part}" in done.err
    assert main(["predict", f"--workdir={run}", "none*"]) == 2
    assert capsys.readouterr().out == ""


def test_the_table_shows_readable_names_and_the_top_classes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    good = str(write_image(tmp_path / "good.png"))
    assert main(["predict", f"--workdir={run}", good]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["file", "%", "class", "next,", "in", "%"]
    assert "tench (n01440764)" in line and line.count(",") >= 1
    assert main(["predict", f"--workdir={run}", good, "--top=1"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["file", "%", "class"]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("top", [1, 5])
def test_a_table_fits_its_terminal(
    width: int, top: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    names = ["猫" * 30, "a rather long name of a class, for a table", *"cdef"]
    table = predict._Table(["photos/" * 30 + "1.jpg", "short.jpg"], names, top)
    table.write("photos/" * 30 + "1.jpg", [(i, 0.2) for i in range(top)])
    table.write("short.jpg", [(2 - i % 3, 0.2) for i in range(top)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and max(map(columns.size, lines)) <= width
    assert "photos/1.jpg" in lines[1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--format=xml", "a.jpg"], "--format is 'xml'; allowed are table, csv, json"),
        (["--top=0", "a.jpg"], "--top is 0; it must be 1 or more."),
        ([], "No image was given"),
    ],
)
def test_what_predict_refuses(
    argv: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["predict", f"--workdir={run}", *argv]) == 2
    assert message in capsys.readouterr().err


def test_predict_runs_the_program_of_evaluate(run: Path):
    """One compiled program serves training, `evaluate` and `predict`: batches are of one size."""
    config = rundir.read_config(run)
    predictor = inference.Predictor(config, inference.read_checkpoint(run).eval_variables, run)
    assert predictor._batch_size(1000) == config.eval.batch_size
    assert predictor._batch_size(3) == 4 and predictor._batch_size(0) >= 1
    assert build.build_eval_step(predictor._model, *predictor._statistics)
