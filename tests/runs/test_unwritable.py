"""Places that cannot be written: what a verb computed is printed, and the rest is a sentence."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from random_weights import random_weights
from support import ROOT, TINY, TINY_SWEEP, Command

from mobilenet import conversion, rundir
from mobilenet.cli.main import main
from mobilenet.train.checkpoints import Checkpoints

LONG = "x" * 300  # no file may have such a name


@pytest.fixture(scope="module")
def cached(cache: Path) -> Iterator[None]:
    """The digits of the other runs, for verbs in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield


@pytest.fixture(scope="module")
def read_only(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A read-only place with a finished run in it, `run`."""
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(finished, place / "run")
    for argv in (["--bind", str(place), str(place)], ["-o", "remount,ro,bind", str(place)]):
        if subprocess.run(["mount", *argv], capture_output=True).returncode:
            pytest.skip("mounting needs privileges")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def ask(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(argv))
    out, err = capsys.readouterr()
    return code, out, err


def test_evaluate_prints_what_it_cannot_keep(
    read_only: Path, cached: None, capsys: pytest.CaptureFixture[str]
):
    code, out, err = ask(capsys, "evaluate", f"--workdir={read_only / 'run'}", "--split=test")
    assert code == 0 and "top-1" in out and "confusion matrix" in out and "written" not in out
    assert err.endswith("Read-only file system. The result above is not kept.\n")
    assert err.count("\n") == 1


def test_predict_needs_nothing_to_write(
    read_only: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    image = tmp_path / "image.png"
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(image)
    code, out, err = ask(capsys, "predict", f"--workdir={read_only / 'run'}", str(image))
    assert code == 0 and "%" in out and err == ""


IN_THE_RUN = (
    ["train", "--workdir={run}"],
    ["export", "--workdir={run}", "--to=stablehlo"],
)
ELSEWHERE = (
    ["train", f"--config={TINY}", "--workdir={to}"],
    ["sweep", f"--config={TINY_SWEEP}", "--workdir={to}"],
    ["shrink", "--workdir={run}", "--to={to}", "--macs=0.9"],
    ["convert", "--workdir={run}", "--to={to}.safetensors"],
    ["quantize", "--workdir={run}", "--to={to}"],
    ["export", "--workdir={run}", "--to=litert", "--out={to}.tflite"],
)


@pytest.mark.parametrize(
    ("where", "argv"),
    [
        *(("read-only", argv) for argv in (*IN_THE_RUN, *ELSEWHERE)),
        *(("name too long", argv) for argv in ELSEWHERE),
    ],
)
def test_a_place_that_cannot_be_written_is_a_sentence(
    read_only: Path,
    finished: Path,
    tmp_path: Path,
    cached: None,
    argv: list[str],
    where: str,
    capsys: pytest.CaptureFixture[str],
):
    run, to = read_only / "run", read_only / "new"
    if where == "name too long":
        run, to = finished, tmp_path / LONG
    code, _, err = ask(capsys, *(word.format(run=run, to=to) for word in argv))
    said = err.strip().splitlines()
    assert code == 1 and len(said) == 1 and said[0].startswith(f"mobilenet {argv[0]}: "), err
    assert str(read_only if where == "read-only" else tmp_path) in said[0] and len(said[0]) < 800
    assert os.listdir(tmp_path) == [] or where == "read-only"


def test_a_converted_run_is_not_made_half(
    read_only: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "model.pth"
    conversion.write_file(random_weights(0.35, 5), path, "torchvision")
    argv = ["convert", "--from=torchvision", str(path)]
    for to in (read_only / "new", path / "below a file"):
        code, _, err = ask(capsys, *argv, f"--to={to}")
        assert code == 1 and "cannot be created" in err and err.count("\n") == 1


@pytest.mark.parametrize("name", ["lr[0.1] ünï", "back\\slash*?\nline"])
def test_a_whole_run_in_an_odd_place(
    mobilenet: Command, tmp_path: Path, name: str, cached: None, capsys: pytest.CaptureFixture[str]
):
    workdir = tmp_path / name
    short = ("--config.train.num_epochs=0.0625", "--config.eval.every_epochs=0")
    for _ in range(2):  # the second finds it complete
        code, out, err = ask(capsys, "train", f"--config={TINY}", f"--workdir={workdir}", *short)
        assert code == 0 and "test: top-1" in out, err
    code, out, _ = ask(capsys, "evaluate", f"--workdir={workdir}", "--checkpoint=newest")
    assert code == 0 and "written to" in out
    code, out, _ = ask(capsys, "export", f"--workdir={workdir}", "--to=litert")
    assert code == 0 and (workdir / "model.tflite").exists()


def test_checkpoints_that_have_gone_are_no_new_run(
    finished: Path, tmp_path: Path, cached: None, capsys: pytest.CaptureFixture[str]
):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "checkpoints")
    before = (workdir / "metrics.jsonl").read_bytes()
    code, _, err = ask(capsys, "train", f"--workdir={workdir}")
    assert code == 1 and "was trained to step 64" in err and "summary.json" in err
    assert (workdir / "metrics.jsonl").read_bytes() == before
    (workdir / "summary.json").write_text("")  # damaged: it is told, and written anew
    shutil.copytree(finished / "checkpoints", workdir / "checkpoints", dirs_exist_ok=True)
    code, _, _ = ask(capsys, "train", f"--workdir={workdir}")
    assert code == 0
    assert (workdir / "summary.json").stat().st_size > 100


@pytest.mark.parametrize(
    "argv",
    [
        ["evaluate", "--workdir={run}"],
        ["convert", "--from=torchvision", "{file}", "--to={to}"],
        ["sweep", f"--config={TINY_SWEEP}", "--workdir={to}"],
    ],
    ids=lambda argv: argv[0],
)
def test_a_backend_that_does_not_start_is_a_sentence(
    finished: Path, tmp_path: Path, argv: list[str]
):
    conversion.write_file(random_weights(0.35, 5), tmp_path / "model.pth", "torchvision")
    words = [w.format(run=finished, to=tmp_path / "to", file=tmp_path / "model.pth") for w in argv]
    done = subprocess.run(
        [sys.executable, "-m", "mobilenet", *words],
        env={**os.environ, "JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 1, done.stderr
    assert f"mobilenet {argv[0]}: JAX finds no device with JAX_PLATFORMS='cuda'" in done.stderr
    assert "Traceback" not in done.stderr
    assert Checkpoints(finished / "checkpoints", read_only=True).steps()[-1] == 64
    points = [rundir.status(point) for point in (tmp_path / "to" / "points").glob("*")]
    assert set(points) <= {"pending"}
