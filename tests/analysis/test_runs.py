"""Run directories to frames: written here file by file, and the committed logs."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mobilenet import config as config_lib
from mobilenet.analysis.runs import NoRunsError, load_runs
from mobilenet.rundir import locked, write_json

ROOT = Path(__file__).parents[2]

LOGS = Path(__file__).parents[2] / "experiments" / "results" / "logs"


def make_run(
    path: Path,
    status: str = "done",
    top1: float = 0.9,
    overrides: Mapping[str, Any] | None = None,
) -> Path:
    """A run directory as `mobilenet train` leaves it, without checkpoints."""
    config = config_lib.get_config()
    config_lib.update(config, overrides or {})
    path.mkdir(parents=True)
    (path / "config.json").write_text(config_lib.to_json(config))
    measured = {"top1": top1, "top5": 1.0, "loss": 0.5, "examples": 100, "skipped": 0}
    summary: dict[str, Any] = {"status": status, "seed": config.seed, "step": 20}
    summary |= {"total_steps": 20, "params": 1000, "macs": 5000, "device": "1 x cpu (cpu)"}
    summary |= {"wall_seconds": 3.5, "first_step_seconds": 1.5, "commit": "abc"}
    if status == "done":
        summary |= {"validation": measured, "test": {**measured, "top1": top1 - 0.1}}
    write_json(path / "summary.json", summary)
    rows = [
        {"step": 10, "epoch": 0.5, "split": "train", "loss": 1.5, "accuracy": 0.4},
        {"step": 20, "epoch": 1.0, "split": "train", "loss": 1.0, "accuracy": 0.6},
        {"step": 20, "epoch": 1.0, "split": "validation", **measured},
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def edit_summary(path: Path, **changes: Any) -> None:
    file = path / "summary.json"
    write_json(file, {**json.loads(file.read_text()), **changes})


def test_committed_logs_load():
    runs = load_runs(LOGS)
    digits = runs.frame[runs.frame["data.name"] == "digits"]
    assert {"baselines/digits/seed0", "baselines/digits/seed1"} <= set(digits.index)
    assert set(runs.frame["status"]) == {"done"} and not runs.frame["damaged_lines"].any()
    assert digits["group"].nunique() == 1
    assert digits.index[0] == "baselines/digits/seed0" and digits["seed"].iloc[0] == 0
    summary = json.loads((LOGS / digits.index[0] / "summary.json").read_text())
    assert digits["test_top1"].iloc[0] == summary["test"]["top1"]
    assert digits["bytes"].iloc[0] == 4 * summary["params"]
    trained = runs.frame.index[runs.frame["train.num_epochs"] > 0]
    assert set(runs.metrics["run"]) == set(trained) and len(trained) < len(runs.frame)


def test_columns_come_in_order_and_with_their_kinds(tmp_path: Path):
    for seed in (0, 1):
        for width in (0.5, 1.0):
            name = f"w{width}_s{seed}"
            overrides = {"seed": seed, "model.width_multiplier": width}
            make_run(tmp_path / "a" / name, overrides=overrides)
    runs = load_runs(tmp_path)
    assert runs.frame.index.tolist() == ["a/w0.5_s0", "a/w0.5_s1", "a/w1.0_s0", "a/w1.0_s1"]
    columns = runs.frame.columns.tolist()
    assert columns[:6] == ["status", "error", "seed", "group", "model.width_multiplier", "step"]
    for after in ("commit", "damaged_lines"):
        assert columns.index("step") < columns.index(after) < columns.index("model.blocks")
    # Every key of the configuration is there, once; the seed under its own name.
    keys = [key for key, _ in config_lib.flatten(config_lib.get_config())]
    assert set(keys) <= set(columns) and len(set(columns)) == len(columns)
    row = runs.frame.loc["a/w0.5_s1"]
    assert row["model.blocks"][0] == (1, 16, 1, 1)
    assert row["model.expansion_ratio"] is None and row["error"] is None
    assert (row["seed"], row["step"], row["params"], row["bytes"]) == (1, 20, 1000, 4000)
    assert (row["train_loss"], row["train_accuracy"]) == (1.0, 0.6)
    assert (row["validation_top1"], row["test_top1"]) == (0.9, pytest.approx(0.8))
    assert row["test_examples"] == 100
    assert (row["device"], row["processor"]) == ("1 x cpu (cpu)", None)
    groups = runs.frame.groupby("model.width_multiplier")["group"].nunique()
    assert groups.tolist() == [1, 1] and runs.frame["group"].nunique() == 2


def test_a_key_that_is_none_or_a_tuple_in_some_runs_keeps_its_values(tmp_path: Path):
    values = (None, 6.0, (1, 6, 6, 6, 6, 6, 6), 4)
    for k, value in enumerate(values):
        run = make_run(tmp_path / str(k))
        config = json.loads((run / "config.json").read_text())
        config["model"]["expansion_ratio"] = value
        write_json(run / "config.json", config)
    assert tuple(load_runs(tmp_path).frame["model.expansion_ratio"].tolist()) == values


def test_metrics_are_long(tmp_path: Path):
    make_run(tmp_path / "r")
    metrics = load_runs(tmp_path).metrics
    assert metrics.columns.tolist() == ["run", "step", "epoch", "split", "metric", "value"]
    loss = metrics[(metrics["metric"] == "loss") & (metrics["split"] == "train")]
    assert loss[["run", "step", "epoch", "value"]].to_numpy().tolist() == [
        ["r", 10, 0.5, 1.5],
        ["r", 20, 1.0, 1.0],
    ]
    assert len(metrics) == 2 * 2 + 5


def test_the_directory_itself_may_be_a_run_and_is_not_searched_further(tmp_path: Path):
    run = make_run(tmp_path / "r")
    make_run(run / "inner")
    make_run(tmp_path / ".hidden")
    assert load_runs(run).frame.index.tolist() == ["."]
    assert load_runs(str(tmp_path)).frame.index.tolist() == ["r"]


def test_links_are_followed_and_a_run_counts_once(tmp_path: Path):
    make_run(tmp_path / "elsewhere" / "r")
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "far").symlink_to(tmp_path / "elsewhere")
    (runs / "near").symlink_to(tmp_path / "elsewhere" / "r")
    (runs / "round").symlink_to(runs)
    assert load_runs(runs).frame.index.tolist() == ["far/r"]


@pytest.mark.parametrize("exists", [True, False])
def test_no_runs_is_an_error(tmp_path: Path, exists: bool):
    directory = tmp_path / "runs"
    if exists:
        (directory / "empty").mkdir(parents=True)
    with pytest.raises(NoRunsError, match=r"runs holds no runs.*`mobilenet train .*--workdir="):
        load_runs(directory)


def test_every_status_is_shown_and_described(tmp_path: Path):
    for k in range(2):
        make_run(tmp_path / f"done{k}", overrides={"seed": k})
    assert load_runs(tmp_path).describe() == "2 runs: 2 done"
    edit_summary(make_run(tmp_path / "failed", status="failed"), error="No space")
    edit_summary(make_run(tmp_path / "diverged", status="diverged"), error="The loss became nan")
    make_run(tmp_path / "killed", status="running")
    (make_run(tmp_path / "pending") / "summary.json").unlink()
    (make_run(tmp_path / "torn") / "summary.json").write_text('{"status": "do')
    (make_run(tmp_path / "mangled") / "config.json").write_text("[1]")
    alive = make_run(tmp_path / "alive", status="running")
    with locked(alive):
        runs = load_runs(tmp_path)
    assert runs.frame["status"].to_dict() == {
        "alive": "running",
        "diverged": "diverged",
        "done0": "done",
        "done1": "done",
        "failed": "failed",
        "killed": "killed",
        "mangled": "damaged",
        "pending": "pending",
        "torn": "damaged",
    }
    errors = runs.frame["error"]
    assert errors["failed"] == "No space" and errors["diverged"] == "The loss became nan"
    assert "summary.json is not JSON" in errors["torn"]
    assert errors["mangled"] == "config.json holds a list instead of an object"
    assert errors["done0"] is None
    assert runs.done.index.tolist() == ["done0", "done1"]
    assert runs.describe() == (
        "9 runs: 2 done, 1 failed, 1 diverged, 2 damaged, 1 running, 1 killed, 1 pending"
    )
    assert math.isnan(runs.frame["test_top1"]["failed"])
    # Where it got to is known from its metrics, though no summary says so.
    assert runs.frame["step"]["pending"] == 20
    assert runs.frame["validation_top1"]["pending"] == 0.9


def test_a_point_that_failed_before_its_configuration(tmp_path: Path):
    points = tmp_path / "sweep" / "points"
    good = make_run(points / "aa", overrides={"model.width_multiplier": 0.5})
    point = {"key": "aa", "group": "g", "overrides": {"model.width_multiplier": 0.5}}
    write_json(good / "point.json", {**point, "error": None})
    overrides = {"model.width_multiplier": 0.25, "seed": 7, "model.stage_strides": [1, 1]}
    bad = {"key": "bb", "group": "h", "overrides": overrides, "error": "Out of memory"}
    (points / "bb").mkdir()
    write_json(points / "bb" / "point.json", bad)
    frame = load_runs(tmp_path).frame
    assert frame.index.tolist() == ["sweep/points/aa", "sweep/points/bb"]
    row = frame.loc["sweep/points/bb"]
    assert (row["status"], row["error"]) == ("failed", "Out of memory")
    assert (row["seed"], row["group"]) == (7, "h")
    assert frame["model.width_multiplier"].tolist() == [0.5, 0.25]
    assert row["model.stage_strides"] == (1, 1)
    assert row["data.name"] is None and math.isnan(row["params"])
    config = config_lib.from_json((good / "config.json").read_text())
    expected = config_lib.fingerprint(config, without=("seed",))
    assert frame["group"]["sweep/points/aa"] == expected


def test_replicates_have_what_names_their_seed_in_common(tmp_path: Path):
    key, texts = "compress.distillation.teacher", {}
    for seed in (0, 1):
        run = make_run(tmp_path / str(seed))
        config = config_lib.from_json((run / "config.json").read_text())
        config_lib.update(config, {"seed": seed, key: f"runs/dense_{seed}"})
        (run / "config.json").write_text(config_lib.to_json(config))
        write_json(run / "point.json", {"overrides": {key: "runs/dense_{seed}", "seed": seed}})
        texts[seed] = load_runs(run).frame[key].tolist()
    frame = load_runs(tmp_path).frame
    assert frame["group"].nunique() == 1 and frame["seed"].tolist() == [0, 1]
    assert frame[key].tolist() == ["runs/dense_{seed}"] * 2 == texts[0] + texts[1]


def test_damaged_metric_lines_are_counted(tmp_path: Path):
    run = make_run(tmp_path / "r")
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 30, "epoch": 1.5, "split": "train", "loss": 0.5}\n')
        file.write(b'\n\x00\x00\xff\n[1]\n{"epoch": 1}\n{"step": 1, "split": "x", "loss": "hi"}\n')
        file.write(b'{"step": 40, "epo')
    runs = load_runs(tmp_path)
    # The empty line counts too: the writer writes none.
    assert runs.frame["damaged_lines"].tolist() == [6]
    assert runs.describe() == "1 run: 1 done; 6 damaged lines of metrics.jsonl skipped"
    assert runs.frame["train_loss"].tolist() == [0.5]
    assert runs.metrics["step"].max() == 30


def test_a_configuration_of_another_version_still_loads(tmp_path: Path):
    run = make_run(tmp_path / "r")
    config = json.loads((run / "config.json").read_text())
    config["model"]["future"] = [1, 2]
    write_json(run / "config.json", config)
    row = load_runs(tmp_path).frame.loc["r"]
    assert row["status"] == "done" and row["test_top1"] == pytest.approx(0.8)
    assert row["model.future"] == (1, 2)
    assert "another version" in row["error"] and "model.future" in row["error"]


def test_a_summary_alone_is_a_run(tmp_path: Path):
    run = make_run(tmp_path / "r", overrides={"seed": 3})
    (run / "config.json").unlink()
    (run / "metrics.jsonl").unlink()
    runs = load_runs(tmp_path)
    row = runs.frame.loc["r"]
    assert (row["status"], row["seed"], row["group"]) == ("done", 3, None)
    assert row["error"] == "config.json is missing"
    assert runs.metrics.empty and math.isnan(row["train_loss"])
