"""Runs killed at any moment end in the bits of undisturbed ones: alone, distilled, as lanes."""

import random
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from support import TINY, TINY_SWEEP, Command, metric_rows, start, summary

from mobilenet.train.checkpoints import read_checkpoint

TRAIN = ("train", f"--config={TINY}")
# A rate so high that validations soon stop getting better: it ends at step 32.
PATIENT = (
    *TRAIN, "--config.train.patience=3", "--config.eval.every_epochs=0.25",
    "--config.optimizer.learning_rate=8.0",
)  # fmt: skip
LANES = ("sweep", f"--config={TINY_SWEEP}", "--lanes=3")


def saved(root: Path) -> set[Path]:
    """Checkpoints of the run in `root`, or of the points of a sweep there, unfinished ones too."""
    return {*root.glob("checkpoints/*"), *root.glob("points/*/checkpoints/*")}


def runs(root: Path) -> list[Path]:
    return sorted({path.parents[1] for path in saved(root)})


def kill_once(
    cache: Path, command: Sequence[str], root: Path, rng: random.Random, *, mid_save: bool
) -> bool:
    """Starts or continues the command and kills it; False if it was done before the kill."""
    process = start(cache, *command, f"--workdir={root}")
    before = saved(root)
    # Of several checkpoints that are written one after the other, at a random one.
    wanted = rng.randint(1, max(1, len(runs(root))))
    try:
        while process.poll() is None:
            new = saved(root) - before
            half = {path for path in new if not path.name.isdigit()}
            if half if mid_save else len(new) >= wanted:
                if not mid_save:
                    time.sleep(rng.uniform(0, 0.3))
                break
            time.sleep(0.001)
        alive = process.poll() is None
        process.kill()
    finally:
        process.communicate()
    return alive


def kill_and_compare(
    cache: Path,
    mobilenet: Command,
    command: Sequence[str],
    finished: Path,
    root: Path,
    *,
    kills: int,
    seed: int,
) -> None:
    rng = random.Random(seed)
    killed = [kill_once(cache, command, root, rng, mid_save=i % 2 == 0) for i in range(kills)]
    assert any(killed)
    mobilenet(*command, f"--workdir={root}")
    assert [path.relative_to(root) for path in runs(root)] == [
        path.relative_to(finished) for path in runs(finished)
    ]
    for ours, theirs in zip(runs(root), runs(finished), strict=True):
        assert summary(ours)["status"] == "done"
        for key in ("step", "test", "result_step"):
            assert summary(ours).get(key) == summary(theirs).get(key)
        assert metric_rows(ours) == metric_rows(theirs)
        for which in ("newest", "result"):
            a, b = read_checkpoint(ours, which), read_checkpoint(theirs, which)
            assert a.step == b.step and jax.tree.structure(a.items) == jax.tree.structure(b.items)
            jax.tree.map(np.testing.assert_array_equal, a.items, b.items)
        leftovers = [p.name for p in (ours / "checkpoints").iterdir() if not p.name.isdigit()]
        assert leftovers == []


def test_killed_runs_end_in_the_same_bits(
    cache: Path, mobilenet: Command, finished: Path, tmp_path: Path
):
    kill_and_compare(cache, mobilenet, TRAIN, finished, tmp_path / "killed", kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_runs_killed_many_times_end_in_the_same_bits(
    cache: Path, mobilenet: Command, finished: Path, tmp_path: Path, seed: int
):
    kill_and_compare(cache, mobilenet, TRAIN, finished, tmp_path / "killed", kills=6, seed=seed)


@pytest.fixture(scope="module")
def patient(mobilenet: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("patient") / "finished"
    mobilenet(*PATIENT, f"--workdir={workdir}")
    found = summary(workdir)
    assert found["result_step"] < found["step"] < found["total_steps"]
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_a_run_out_of_patience_ends_in_the_same_bits(
    cache: Path, mobilenet: Command, patient: Path, tmp_path: Path, seed: int
):
    kill_and_compare(cache, mobilenet, PATIENT, patient, tmp_path / "killed", kills=5, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [5, 6])
def test_distilled_runs_end_in_the_same_bits(
    cache: Path, mobilenet: Command, finished: Path, tmp_path: Path, seed: int
):
    command = (
        *TRAIN, f"--config.compress.distillation.teacher={finished}", "--config.seed=1",
        "--config.compress.distillation.transfer=attention",
    )  # fmt: skip
    mobilenet(*command, f"--workdir={tmp_path / 'whole'}")
    kill_and_compare(
        cache, mobilenet, command, tmp_path / "whole", tmp_path / "killed", kills=5, seed=seed
    )


@pytest.fixture(scope="module")
def lanes(mobilenet: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("lanes") / "finished"
    mobilenet(*LANES, f"--workdir={workdir}")
    assert len(runs(workdir)) == 12
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("seed", [7, 8, 9])
def test_lanes_end_in_the_same_bits(
    cache: Path, mobilenet: Command, lanes: Path, tmp_path: Path, seed: int
):
    kill_and_compare(cache, mobilenet, LANES, lanes, tmp_path / "killed", kills=6, seed=seed)
