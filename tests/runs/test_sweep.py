"""`mobilenet sweep` as a command: killed and started again, in several processes, refused."""

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support import TINY_SWEEP, Command, metric_rows, start, summary

from mobilenet import rundir
from mobilenet.train.checkpoints import Checkpoints

CONFIG = f"--config={TINY_SWEEP}"


def directories(workdir: Path) -> list[Path]:
    return sorted((workdir / "points").iterdir())


def final_params(directory: Path) -> Any:
    restored = Checkpoints(directory / "checkpoints", read_only=True).read_newest()
    assert restored is not None
    return restored.items["params"]


def evaluations(directory: Path) -> int:
    """How often the run came to its end, where the test split is measured."""
    return (directory / "log.txt").read_text().count("test at step 16")


@pytest.fixture(scope="module")
def undisturbed(mobilenet: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("sweeps") / "undisturbed"
    done = mobilenet("sweep", CONFIG, f"--workdir={workdir}")
    assert "12 runs: 12 done" in done.stdout
    assert len(directories(workdir)) == 12
    return workdir


def assert_same_points(workdir: Path, undisturbed: Path, *, rows: bool = True) -> None:
    assert [p.name for p in directories(workdir)] == [p.name for p in directories(undisturbed)]
    for ours, theirs in zip(directories(workdir), directories(undisturbed), strict=True):
        assert summary(ours)["status"] == "done"
        assert summary(ours)["test"] == summary(theirs)["test"]
        if rows:
            assert metric_rows(ours) == metric_rows(theirs)
        jax.tree.map(np.testing.assert_array_equal, final_params(ours), final_params(theirs))
        assert evaluations(ours) == 1


@pytest.mark.slow
def test_a_sweep_killed_three_times_computes_every_point_once(
    cache: Path, mobilenet: Command, undisturbed: Path, tmp_path: Path
):
    workdir, rng = tmp_path / "killed", random.Random(0)
    for kill in range(3):
        process = start(cache, "sweep", CONFIG, f"--workdir={workdir}")
        # At a random moment after some more points have ended.
        wanted = 3 * kill + rng.randint(1, 3)
        while process.poll() is None:
            ended = list(workdir.glob("points/*/log.txt"))
            if sum(evaluations(path.parent) for path in ended) >= wanted:
                time.sleep(rng.uniform(0, 0.5))
                break
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
    last = mobilenet("sweep", CONFIG, f"--workdir={workdir}")
    assert "12 runs: 12 done" in last.stdout and "12/12 done" in last.stderr
    assert_same_points(workdir, undisturbed)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_named(cache: Path, mobilenet: Command, tmp_path: Path):
    workdir = tmp_path / "sweep"
    process = start(cache, "sweep", CONFIG, f"--workdir={workdir}", "--jobs=2")
    while process.poll() is None and not list(workdir.glob("points/*/checkpoints/*")):
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "worker 0 was ended by SIGKILL" in err
    mobilenet("sweep", CONFIG, f"--workdir={workdir}")


@pytest.mark.usefixtures("default_hangup")
@pytest.mark.slow
def test_a_sweep_ends_its_workers_when_the_terminal_is_closed(cache: Path, tmp_path: Path):
    workdir = tmp_path / "sweep"
    process = start(cache, "sweep", CONFIG, f"--workdir={workdir}", "--jobs=2")
    while process.poll() is None and not list(workdir.glob("points/*/checkpoints/*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGHUP and "points in progress are saved" in err
    statuses = {rundir.status(directory) for directory in directories(workdir)}
    assert statuses <= {"done", "interrupted", "pending"}


@pytest.mark.slow
def test_two_processes_share_a_sweep_and_stop_on_a_signal(
    cache: Path, mobilenet: Command, undisturbed: Path, tmp_path: Path
):
    workdir = tmp_path / "parallel"
    process = start(cache, "sweep", CONFIG, f"--workdir={workdir}", "--jobs=2")
    while process.poll() is None and not list(workdir.glob("points/*/checkpoints/*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "The same command continues" in err
    mobilenet("sweep", CONFIG, f"--workdir={workdir}", "--jobs=2")
    # A run that a signal ended has a row more: the steps until then.
    assert_same_points(workdir, undisturbed, rows=False)


def test_the_dry_run_shows_points_costs_and_what_is_done(mobilenet: Command, undisturbed: Path):
    done = mobilenet("sweep", CONFIG, f"--workdir={undisturbed}", "--dry_run")
    assert "12 runs of 4 variants: 12 done, 0 steps to train; 1 shape to compile" in done.stdout
    fresh = mobilenet("sweep", CONFIG, f"--workdir={undisturbed}-not", "--dry_run")
    assert "0 done, 192 steps to train" in fresh.stdout
    assert not Path(f"{undisturbed}-not").exists()
    assert max(map(len, fresh.stdout.splitlines())) <= 80


def test_data_that_cannot_be_opened_are_refused_before_points_are_made(
    mobilenet: Command, tmp_path: Path
):
    workdir = tmp_path / "sweep"
    refused = mobilenet("sweep", f"{CONFIG}:broken", f"--workdir={workdir}", ok=False)
    assert refused.returncode == 2 and "no/such/folder" in refused.stderr
    assert "Traceback" not in refused.stderr and not workdir.exists()


def test_a_sweep_next_to_another_says_what_it_left_to_it(
    mobilenet: Command, undisturbed: Path, tmp_path: Path
):
    workdir = tmp_path / "shared"
    shutil.copytree(undisturbed, workdir)
    directory = directories(workdir)[0]
    (directory / "summary.json").unlink()
    with rundir.locked(directory):
        second = mobilenet("sweep", CONFIG, f"--workdir={workdir}", ok=False)
    assert second.returncode == 1
    assert "11 done, 1 running" in second.stdout and "another sweep" in second.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=experiments/baselines/digits.py"], "has no sweep()"),
        ([CONFIG, "--config.train.num_epochs=0"], "train.num_epochs is 0"),
        ([CONFIG, "--jobs=0"], "--jobs is 0"),
        ([f"{CONFIG}:search"], "--search"),
        ([f"{CONFIG}:search", "--search=tpe", "--jobs=2"], "leave --jobs out"),
        ([f"{CONFIG}:search", "--search=tpe", "--dry_run"], "--dry_run has no meaning"),
        ([f"{CONFIG}:search", "--search=grid"], "allowed are random, tpe"),
        ([CONFIG, "--search=tpe"], "no ranges"),
        ([CONFIG, "--slurm=cpus=2"], "without --launcher=slurm"),
        ([CONFIG, "--launcher=slurm", "--slurm=nodes=2"], "one of partition"),
    ],
)
def test_sweeps_that_cannot_run_are_refused(
    mobilenet: Command, tmp_path: Path, arguments: list[str], message: str
):
    refused = mobilenet("sweep", *arguments, f"--workdir={tmp_path}/none", ok=False)
    assert refused.returncode == 2 and message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "none").exists()
