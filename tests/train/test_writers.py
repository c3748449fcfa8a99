"""Where metrics go besides metrics.jsonl: each row once, whatever was killed in between."""

# pyright: reportMissingImports=false

import csv
import importlib.util
import io
import json
import logging
import shutil
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support import TINY, start, tiny

from mobilenet import build, config
from mobilenet.cli.main import main
from mobilenet.config import ConfigError
from mobilenet.rundir import RunDirectoryError
from mobilenet.train import writers
from mobilenet.train.records import MetricsWriter

needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="needs the extra wandb"
)
needs_mlflow = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="needs the extra mlflow"
)
# Their own code, and their dependencies', warns on import.
pytestmark = pytest.mark.filterwarnings("default:::(wandb|mlflow|pydantic)")


def train_row(step: int) -> dict[str, Any]:
    return {"step": step, "epoch": step / 8, "split": "train", "loss": 1 / step}


def validation_row(step: int) -> dict[str, Any]:
    more = {"top1": 0.5, "loss": 2 / step, "examples": 10}
    return {"step": step, "epoch": step / 8, "split": "validation", **more}


ROWS = [train_row(4), train_row(8), validation_row(8), train_row(12), train_row(16)]
SUMMARY = {"step": 24, "test": {"top1": 0.75, "loss": 0.5, "examples": 4}}


def write_killed_and_resumed(workdir: Path, names: Sequence[str]) -> None:
    """A run that is killed after step 16, continues after 8, and ends at step 24."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(config.to_json(tiny()))
    killed = MetricsWriter(workdir, resume_step=0, names=names)
    for row in ROWS:
        killed.write(row)
    killed.close()
    resumed = MetricsWriter(workdir, resume_step=8, names=names)
    for row in (train_row(12), train_row(16), validation_row(16), train_row(20)):
        resumed.write(row)
    resumed.conclude("done", SUMMARY)
    resumed.close()


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(), newline="")))


def test_the_table_has_the_rows_of_the_json_lines(tmp_path: Path):
    write_killed_and_resumed(tmp_path, ["csv"])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = read_csv(tmp_path / "metrics.csv")
    assert list(found[0]) == ["step", "epoch", "split", "loss", "top1", "examples"]
    assert [{k: v for k, v in row.items() if v} for row in found] == [
        {name: str(value) for name, value in row.items()} for row in rows
    ]
    assert [row["step"] for row in found] == ["4", "8", "8", "12", "16", "16", "20"]


def test_a_table_that_a_kill_cut_off_is_written_again(tmp_path: Path):
    write_killed_and_resumed(tmp_path, ["csv"])
    whole = (tmp_path / "metrics.csv").read_text()
    (tmp_path / "metrics.csv").write_text(whole[:-9])
    MetricsWriter(tmp_path, resume_step=20, names=["csv"]).close()
    assert (tmp_path / "metrics.csv").read_text() == whole
    (tmp_path / "metrics.csv").unlink()  # asked for late
    MetricsWriter(tmp_path, resume_step=20, names=["csv"]).close()
    assert (tmp_path / "metrics.csv").read_text() == whole


def test_every_writer_that_a_configuration_may_name_can_be_opened():
    assert tuple(writers.OPEN) == config.LOG_WRITERS


@pytest.mark.parametrize(
    ("asked", "tensorboard", "opened"),
    [
        ((), True, ("tensorboard",)),
        ((), False, ()),
        ("csv", True, ("csv", "tensorboard")),
        ("wandb, csv", False, ("csv", "wandb")),
        (["tensorboard"], False, ("tensorboard",)),
    ],
)
def test_writers_that_a_configuration_asks_for(
    asked: Any, tensorboard: bool, opened: tuple[str, ...]
):
    found = config.get_config()
    assert config.log_writers(found) == ("tensorboard",)  # as before there were others
    config.update(found, {"log.writers": asked, "log.tensorboard": tensorboard})
    config.validate(found)
    assert config.log_writers(found) == opened
    assert config.from_json(config.to_json(found)).log.writers == found.log.writers


@pytest.mark.parametrize("asked", ["tensorbord", ("csv", "csv"), (1,)])
def test_other_writers_are_refused(asked: Any):
    found = config.get_config()
    config.update(found, {"log.writers": asked})
    with pytest.raises(ConfigError, match=r"log.writers is .*allowed are csv, tensorboard, wandb"):
        config.validate(found)


def test_writers_change_nothing_that_a_run_computes():
    found = config.get_config()
    before = config.fingerprint(found), build._step_config(found)
    config.update(found, {"log.writers": ("csv",)})
    assert (config.fingerprint(found), build._step_config(found)) == before
    assert not config.differences(config.get_config(), found)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_an_error_before_anything_is_compiled(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    monkeypatch.setitem(sys.modules, name, None)
    run = tmp_path / "run"
    argv = ["train", f"--config={TINY}", f"--workdir={run}", f"--config.log.writers=csv,{name}"]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert f"{name} is not installed; `pip install -e '.[{name}]'` in the checkout" in error
    assert not list(run.glob("*.json"))


# ---- services, in the files that they write without a network


def wandb_records(path: Path) -> list[Any]:
    """The records of a transaction log: LevelDB's format behind 7 bytes of its own."""
    from wandb.proto import wandb_internal_pb2

    protocol: Any = wandb_internal_pb2  # generated code, opaque to type checkers

    data, at, parts, found = path.read_bytes(), 7, b"", []
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = protocol.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def wandb_history(workdir: Path) -> tuple[set[str], list[tuple[int, dict[str, Any]]], list[Any]]:
    """Of all parts of a run in their order: its ids, rows with their step, and all records."""
    ids, rows, records = set(), [], []
    for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
        # Its own process writes the file, to the end some time after `finish`.
        part, until = wandb_records(path), time.monotonic() + 60
        while not (part and part[-1].HasField("exit")) and time.monotonic() < until:
            time.sleep(0.1)
            part = wandb_records(path)
        records += part
    for record in records:
        if record.HasField("run"):
            ids.add(record.run.run_id)
        if record.HasField("history"):
            items = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            rows.append((record.history.step.num, items))
    return ids, rows, records


@needs_wandb
def test_wandb_has_one_run_and_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    write_killed_and_resumed(tmp_path / "my run", ["wandb"])
    ids, rows, records = wandb_history(tmp_path / "my run")
    assert len(ids) == 1 and ids < {json.loads(line).get("id") for line in
        (tmp_path / "my run" / "wandb_run.jsonl").read_text().splitlines()}  # fmt: skip
    losses = [(step, row["train/loss"]) for step, row in rows if "train/loss" in row]
    assert losses == [(step, 1 / step) for step in (4, 8, 12, 16, 20)]
    validations = {step: row["validation/top1"] for step, row in rows if "validation/top1" in row}
    assert validations == {8: 0.5, 16: 0.5}
    summary = [item for record in records if record.HasField("summary")
               for item in record.summary.update]  # fmt: skip
    assert {item.key or ".".join(item.nested_key): item.value_json for item in summary}[
        "test/top1"
    ] == "0.75"
    settings = {item.key for record in records if record.HasField("run")
                for item in record.run.config.update}  # fmt: skip
    assert "optimizer.learning_rate" in settings


@needs_mlflow
@pytest.mark.parametrize("name", ["run", "odd näme %20 #1"])
def test_mlflow_has_one_run_and_every_row_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workdir = tmp_path / name
    write_killed_and_resumed(workdir, ["mlflow"])
    client = mlflow.MlflowClient(tracking_uri=(workdir / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("mobilenet")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == json.loads((workdir / "mlflow_run.json").read_text())["run_id"]
    assert (run.info.run_name, run.info.status) == (name, "FINISHED")
    assert run.data.params["optimizer.learning_rate"] == "0.1"

    def history(key: str) -> list[tuple[int, float]]:
        return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]

    assert history("train/loss") == [(step, 1 / step) for step in (4, 8, 12, 16, 20)]
    assert history("validation/top1") == [(8, 0.5), (16, 0.5)]
    assert history("epoch") == [(step, step / 8) for step in (4, 8, 12, 16, 20)]
    assert history("test/top1") == [(24, 0.75)]


@needs_mlflow
def test_a_writer_that_is_asked_for_late_gets_the_rows_before(tmp_path: Path):
    import mlflow

    write_killed_and_resumed(tmp_path, ["csv"])
    MetricsWriter(tmp_path, resume_step=20, names=["mlflow"]).close()
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    run = json.loads((tmp_path / "mlflow_run.json").read_text())["run_id"]
    steps = [metric.step for metric in client.get_metric_history(run, "train/loss")]
    assert steps == [4, 8, 12, 16, 20]


@needs_mlflow
def test_a_service_that_fails_does_not_end_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING, "mobilenet")
    (tmp_path / "config.json").write_text(config.to_json(tiny()))
    writer = MetricsWriter(tmp_path, resume_step=0, names=["mlflow"])
    writer.write(train_row(4))
    shutil.rmtree(tmp_path / "mlruns")
    for row in (train_row(8), train_row(12)):
        writer.write(row)
    writer.conclude("done", SUMMARY)
    writer.close()
    warnings = [message for message in caplog.messages if "goes on without it" in message]
    assert len(warnings) == 1 and warnings[0].startswith("MLflow failed (")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    # Where it continues, a run that the store does not have is an error.
    with pytest.raises(RunDirectoryError, match="MLflow cannot log this run: .*MLFLOW_TRACKING"):
        MetricsWriter(tmp_path, resume_step=12, names=["mlflow"])


@pytest.mark.slow
@needs_wandb
@needs_mlflow
def test_a_killed_training_continues_the_same_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # as whoever reads such files has to
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # of this process: it outlives the kill
    run, cache = tmp_path / "run", tmp_path / "cache"
    command = ("train", f"--config={TINY}", f"--workdir={run}", "--config.checkpoint.every_steps=9",
               "--config.log.writers=csv,wandb,mlflow")  # fmt: skip
    process = start(cache, *command)
    while process.poll() is None:
        metrics = run / "metrics.jsonl"
        if metrics.exists() and len(metrics.read_text().splitlines()) >= 7:
            break
    process.kill()
    process.communicate()
    process = start(cache, *command)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [int(row["step"]) for row in read_csv(run / "metrics.csv")] == [r["step"] for r in rows]
    steps = [row["step"] for row in rows if row["split"] == "train"]
    client = mlflow.MlflowClient(tracking_uri=(run / "mlruns").as_uri())
    id = json.loads((run / "mlflow_run.json").read_text())["run_id"]
    logged = [metric.step for metric in client.get_metric_history(id, "train/loss")]
    assert sorted(logged) == steps and len(set(logged)) == len(logged)
    ids, history, _ = wandb_history(run)
    seen = [step for step, row in history if "train/loss" in row]
    assert len(ids) == 1 and seen == steps
    validations = [row["step"] for row in rows if row["split"] == "validation"]
    assert [step for step, row in history if "validation/top1" in row] == validations
