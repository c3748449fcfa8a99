"""A run survives signals, other device counts, damage, divergence; `test_kills` has the kills."""

import fcntl
import json
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support import ROOT, TINY, TINY_SWEEP, Command, start, summary, without_a_reader

from mobilenet.train.checkpoints import Checkpoints

STEPS = 64  # of the tiny run: 4 epochs of 256 examples in batches of 16


def final_items(workdir: Path) -> Any:
    restored = Checkpoints(workdir / "checkpoints", read_only=True).read_newest()
    assert restored is not None and restored.step == STEPS
    return restored.items


def assert_same_bits(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("default_hangup")
def test_signals_save_and_the_run_continues(
    cache: Path, mobilenet: Command, finished: Path, tmp_path: Path, number: signal.Signals
):
    workdir = tmp_path / "interrupted"
    process = start(cache, "train", f"--config={TINY}", f"--workdir={workdir}")
    metrics = workdir / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    assert f"Interrupted by {number.name}" in err and "is saved" in err
    assert summary(workdir)["status"] == "interrupted"
    saved = Checkpoints(workdir / "checkpoints", read_only=True).steps()[-1]
    assert saved == summary(workdir)["step"] > 0
    mobilenet("train", f"--workdir={workdir}")  # the directory's own configuration
    assert_same_bits(final_items(workdir), final_items(finished))


def test_a_training_goes_on_when_nobody_reads_its_output(
    cache: Path, finished: Path, tmp_path: Path
):
    workdir = tmp_path / "unwatched"
    assert without_a_reader("train", f"--config={TINY}", f"--workdir={workdir}", cache=cache) == 0
    assert summary(workdir)["status"] == "done"
    assert summary(workdir)["test"] == summary(finished)["test"]


@pytest.mark.slow
def test_exit_codes_are_true_when_nobody_reads_the_output(cache: Path, tmp_path: Path):
    rate = "--config.optimizer.learning_rate=1e30"
    for command, code in (
        (["train", f"--config={TINY}", "--config.optimizer.name=sgd", rate], 3),
        (["sweep", f"--config={TINY_SWEEP}:broken"], 2),
        (["sweep", f"--config={TINY_SWEEP}", "--jobs=2", "--lanes=2"], 0),
    ):
        workdir = tmp_path / str(code)
        assert without_a_reader(*command, f"--workdir={workdir}", cache=cache) == code, command


def test_finished_runs_are_left_alone(mobilenet: Command, finished: Path):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    done = mobilenet("train", f"--config={TINY}", f"--workdir={finished}")
    assert "is complete" in done.stderr and "test: top-1" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_two_devices_and_two_processes_equal_one_device(
    cache: Path, mobilenet: Command, finished: Path, tmp_path: Path
):
    # Sums over a batch run in another order, so equality is float32's. It is measured after one
    # step: rounding differences grow along a training path as any perturbation does.
    short = ("--config.train.num_epochs=0.0625", "--config.eval.every_epochs=0")
    base = ["train", f"--config={TINY}", *short]
    items: dict[str, Any] = {}
    for name, devices in (("one", 1), ("two", 2)):
        workdir = tmp_path / name
        mobilenet(*base, f"--workdir={workdir}", f"--cpu_devices={devices}")
        items[name] = Checkpoints(workdir / "checkpoints", read_only=True).read(1)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workdir = tmp_path / "processes"
    spread = [*base, f"--workdir={workdir}", "--num_processes=2", f"--coordinator=127.0.0.1:{port}"]
    both = [start(cache, *spread, f"--process_id={i}") for i in range(2)]
    ended = [p.communicate(timeout=200) for p in both]
    assert [p.returncode for p in both] == [0, 0], ended
    assert "run directory" in ended[0][0] and "run directory" not in ended[1][0]
    items["processes"] = Checkpoints(workdir / "checkpoints", read_only=True).read(1)

    for name in ("two", "processes"):
        assert jax.tree.structure(items[name].items) == jax.tree.structure(items["one"].items)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
            items[name].items,
            items["one"].items,
        )
    tests = [summary(tmp_path / name)["test"] for name in ("one", "two", "processes")]
    assert tests[0]["examples"] == tests[1]["examples"] == tests[2]["examples"] == 360
    np.testing.assert_allclose([t["loss"] for t in tests], tests[0]["loss"], rtol=1e-3)


@pytest.mark.slow
def test_a_checkpoint_of_two_devices_continues_on_one(mobilenet: Command, tmp_path: Path):
    workdir = tmp_path / "moved"
    mobilenet(
        "train", f"--config={TINY}", f"--workdir={workdir}", "--cpu_devices=2",
        "--config.train.num_epochs=1.0",
    )  # fmt: skip
    evaluated = mobilenet("evaluate", f"--workdir={workdir}", "--cpu_devices=1")
    assert "top-1" in evaluated.stdout
    report = json.loads((workdir / "evaluation_test.json").read_text())
    assert report["top1"] == summary(workdir)["test"]["top1"]


def test_divergence_stops_the_run_and_names_the_step(mobilenet: Command, tmp_path: Path):
    workdir = tmp_path / "diverged"
    done = mobilenet(
        "train", f"--config={TINY}", f"--workdir={workdir}", "--config.optimizer.name=sgd",
        "--config.optimizer.learning_rate=1e30", ok=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "at step" in done.stderr and "Lower --config.optimizer.learning_rate" in done.stderr
    assert "checkpoint" in done.stderr
    assert summary(workdir)["status"] == "diverged"
    # No checkpoint may hold what is not a number.
    for step in Checkpoints(workdir / "checkpoints", read_only=True).steps():
        assert step < summary(workdir)["step"]


def test_another_configuration_is_refused_with_the_keys(mobilenet: Command, finished: Path):
    done = mobilenet(
        "train", f"--config={TINY}", f"--workdir={finished}", "--config.seed=3", ok=False
    )
    assert done.returncode == 2
    assert "seed is 0 there and 3 now" in done.stderr


def test_a_directory_in_use_is_refused(cache: Path, mobilenet: Command, tmp_path: Path):
    with open(tmp_path / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = mobilenet("train", f"--config={TINY}", f"--workdir={tmp_path}", ok=False)
    assert done.returncode == 1
    assert "Another process is training" in done.stderr


def test_a_full_disk_is_a_clear_error(mobilenet: Command, small_disk: Path):
    done = mobilenet("train", f"--config={TINY}", f"--workdir={small_disk}/run", ok=False)
    assert done.returncode == 1
    assert "mobilenet train: The disk is full" in done.stderr
    # Orbax's own threads may still complain about their closed event loop; no frame is ours.
    assert f'File "{ROOT}/mobilenet' not in done.stderr


def test_damage_falls_back_to_the_checkpoint_before(
    mobilenet: Command, finished: Path, tmp_path: Path
):
    workdir = tmp_path / "damaged"
    shutil.copytree(finished, workdir)
    newest = workdir / "checkpoints" / str(STEPS)
    shutil.rmtree(newest / "params")
    done = mobilenet("train", f"--workdir={workdir}")
    assert "is damaged" in done.stderr and "Resuming" in done.stderr
    assert_same_bits(final_items(workdir), final_items(finished))


def test_a_run_killed_before_its_summary_still_gets_a_whole_one(
    mobilenet: Command, finished: Path, tmp_path: Path
):
    workdir = tmp_path / "unsummarised"
    shutil.copytree(finished, workdir)
    (workdir / "summary.json").unlink()
    mobilenet("train", f"--workdir={workdir}")
    for split in ("validation", "test"):
        assert summary(workdir)[split] == summary(finished)[split]
    assert summary(workdir)["status"] == "done"


@pytest.mark.slow
def test_killed_before_anything_is_saved_starts_again(
    cache: Path, mobilenet: Command, finished: Path, tmp_path: Path
):
    workdir = tmp_path / "early"
    process = start(cache, "train", f"--config={TINY}", f"--workdir={workdir}")
    while not (workdir / "config.json").exists():
        time.sleep(0.005)
    process.kill()
    process.communicate()
    mobilenet("train", f"--config={TINY}", f"--workdir={workdir}")
    assert_same_bits(final_items(workdir), final_items(finished))
