"""The benchmark on small shapes: real processes, real steps, peers that must agree."""

import csv
import json
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilenet import config as config_lib
from mobilenet.benchmark import implementations, suite
from mobilenet.benchmark.suite import BenchmarkError, Case
from mobilenet.cli.main import main
from mobilenet.config import Config

ENVIRONMENT = {"device": "cpu", "processor": "p", "versions": {"jax": "1"}, "commit": "c"}


def tiny() -> Config:
    config = config_lib.get_config()
    config.model.blocks = ((1, 8, 1, 1), (3, 8, 2, 2))
    config.model.stem_features = 8
    config.model.head_features = 16
    config.model.padding = "SYMMETRIC"
    config.data.image_size = 16
    return config


def case(work: str, **more: object) -> Case:
    fields = {"implementations": ("ours", "flax"), "batch_size": 4, "num_classes": 5, **more}
    return Case("case", work, tiny(), **fields)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("work", ["train", "evaluate", "block"])
def test_rows_hold_what_was_measured(work: str, tmp_path: Path):
    said: list[str] = []
    path = tmp_path / "benchmark.csv"
    cases = [case(work, block="blocks_1_1")]
    rows = suite.run(cases, path, rounds=2, environment=ENVIRONMENT, say=said.append)
    assert [row["implementation"] for row in rows] == ["ours", "flax"]
    for row in rows:
        assert 0 < float(row["seconds_low"]) <= float(row["seconds"]) <= float(row["seconds_high"])
        assert float(row["images_per_second"]) == pytest.approx(4 / float(row["seconds"]), rel=1e-3)
        assert float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"])
        assert row["rounds"] == 2 and float(row["first_step_seconds"]) > 0
        assert int(row["peak_mb"]) >= 0 and 0 < float(row["bandwidth_share"])
    assert float(rows[0]["ratio"]) == 1
    assert float(rows[0]["check"]) == pytest.approx(float(rows[1]["check"]), rel=1e-4)
    stored = list(csv.DictReader(path.read_text().splitlines()))
    assert stored == [{k: str(v) for k, v in row.items()} for row in rows]
    assert len(json.loads(path.with_suffix(".json").read_text())) == 2
    again = suite.run(cases, path, rounds=2, environment=ENVIRONMENT, say=said.append)
    assert [dict(row) for row in again] == stored and "already measured" in said[-1]


@pytest.mark.slow
def test_variants_of_the_configuration_take_its_step():
    """Masks that are full change no loss, eight bits change it little, and both are in the step."""
    losses, programs = {}, {}
    for name in ("ours", "pruned", "qat"):
        implementation = implementations.prepare(tiny(), implementations.Spec(name, "train", 4, 5))
        losses[name] = implementation.check(implementation.step())
        implementation.wait(implementation.step())
        programs[name] = implementation.analyse()["accessed_bytes"]
    assert losses["pruned"] == pytest.approx(losses["ours"], rel=1e-6)
    assert 0 < abs(losses["qat"] / losses["ours"] - 1) < suite.ROUNDED
    assert programs["pruned"] > programs["ours"] and programs["qat"] > 1.2 * programs["ours"]


def test_steps_that_compute_something_else_are_refused():
    def worker(check: float) -> types.SimpleNamespace:
        return types.SimpleNamespace(implementation="other", started={"check": check})

    suite._agree(case("train"), worker(1.0), worker(1.001))  # type: ignore[arg-type]
    for check in (1.01, float("nan")):
        with pytest.raises(BenchmarkError, match="do not compute the same"):
            suite._agree(case("train"), worker(1.0), worker(check))  # type: ignore[arg-type]


def test_a_subject_that_cannot_run_says_why():
    with pytest.raises(BenchmarkError, match="'blocks_9_9'; allowed are stem, blocks_0_0"):
        suite.measure(case("block", block="blocks_9_9"), 1, ENVIRONMENT)


@pytest.mark.slow
def test_photographs_to_crops(tmp_path: Path):
    empty = case("input", implementations=("ours", "pillow"))
    with pytest.raises(BenchmarkError, match="holds no JPEG files"):
        suite.measure(empty, 1, ENVIRONMENT)
    rng = np.random.default_rng(0)
    for index in range(3):
        image = Image.fromarray(rng.integers(0, 256, (90, 120, 3), np.uint8))
        image.save(tmp_path / f"{index}.jpg")
    empty.config.data.data_dir = str(tmp_path)
    rows = suite.measure(empty, 1, ENVIRONMENT)
    assert [float(row["check"]) for row in rows] == [4 * 16 * 16 * 3] * 2


def test_the_verb_measures_any_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(Path(__file__).parents[2])
    arguments = [
        "benchmark",
        "--config=tests/runs/tiny.py",
        f"--workdir={tmp_path}",
        "--implementations=ours",
        "--rounds=1",
        "--batch_size=2",
    ]
    assert main([*arguments, "--only=evaluate"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "benchmark.csv",
        "benchmark.json",
        "benchmark.png",
    }
    assert "images/s" in capsys.readouterr().out
    for wrong, message in (
        ("--only=tran", "did you mean train?"),
        ("--implementations=jax", "allowed are ours, flax"),
        ("--rounds=0", "must be 1 or more"),
    ):
        assert main([*arguments, wrong]) == 2
        assert message in capsys.readouterr().err
