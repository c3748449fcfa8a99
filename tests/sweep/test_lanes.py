"""Which points train together: those that stand at one step, and none loses a checkpoint by it."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support import metric_rows, summary

from mobilenet import build, identity, rundir
from mobilenet.config import ConfigError
from mobilenet.sweep import lanes, points, runner
from mobilenet.sweep.points import Point
from mobilenet.train import loop
from mobilenet.train.checkpoints import Checkpoints, read_checkpoint
from mobilenet.train.lanes import LanesApart


def kept(directory: Path) -> Checkpoints:
    return Checkpoints(directory / "checkpoints", read_only=True)


def interrupt(directory: Path, step: int, **more: Any) -> None:
    """Leaves a finished run as a signal at `step` does."""
    changes = {"status": "interrupted", "step": step, **more}
    rundir.write_json(directory / "summary.json", summary(directory) | changes)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        checkpoints.discard_after(step)
    assert kept(directory).steps()[-1] == step


def keys(chunks: list[list[Point]]) -> list[list[str]]:
    return [[point.key for point in chunk] for chunk in chunks]


def resumed_at(directory: Path) -> list[int]:
    lines = (directory / "log.txt").read_text().splitlines()
    return [int(line.split(" at step ")[1].split()[0]) for line in lines if "Resuming" in line]


def test_interrupted_points_keep_their_progress_among_pending_ones(
    tiny_points: list[Point], sweep_directory: Path
):
    chosen = tiny_points[:4]
    begun = [point.directory(sweep_directory) for point in chosen[:2]]
    runner.run(chosen[:2], sweep_directory, progress=False)
    for directory in begun:
        interrupt(directory, 12)
    outcome = runner.run(chosen, sweep_directory, lanes=4, progress=False)
    assert len(outcome.done) == 4
    assert [resumed_at(directory) for directory in begun] == [[12], [12]]
    assert [summary(p.directory(sweep_directory))["lanes"] for p in chosen] == [2, 2, 2, 2]


def test_runs_at_different_steps_are_no_lanes(tiny_points: list[Point], tmp_path: Path):
    chosen = tiny_points[:3]
    runner.run(chosen[:2], tmp_path, progress=False)
    directories = [point.directory(tmp_path) for point in chosen]
    directories[2].mkdir()
    interrupt(directories[0], 12)
    parts = build.build_lanes([point.config for point in chosen], directories)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(LanesApart, match="are at different steps") as caught:
        loop.train_lanes(parts, directories)
    assert caught.value.groups == [[0], [1], [2]]
    assert (
        before.items()
        <= {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}.items()
    )


def test_a_damaged_point_fails_alone(tiny_points: list[Point], sweep_directory: Path):
    chosen = tiny_points[:2]
    directories = [point.directory(sweep_directory) for point in chosen]
    runner.run(chosen, sweep_directory, lanes=2, progress=False)
    for directory in directories:
        interrupt(directory, 12)
    for step in kept(directories[0]).steps():
        shutil.rmtree(directories[0] / "checkpoints" / str(step) / "params")
    outcome = runner.run(chosen, sweep_directory, lanes=2, progress=False)
    assert list(outcome.statuses.values()) == ["failed", "done"]
    assert "damaged" in rundir.read_json(directories[0] / "point.json")["error"]
    assert resumed_at(directories[1]) == [12]


def test_a_point_that_cannot_begin_keeps_none_from_training(
    tiny_points: list[Point], sweep_directory: Path
):
    chosen = tiny_points[:2]
    runner.register(chosen, sweep_directory)
    directory = chosen[0].directory(sweep_directory)
    changed = points.make_point(chosen[0].config, {"train.num_epochs": 1.0})
    identity.begin(directory, changed.config)
    with pytest.raises(ConfigError, match="num_epochs"):
        runner.run(chosen, sweep_directory, lanes=2, progress=False)
    assert list(runner.statuses(chosen, sweep_directory).values()) == ["pending", "done"]


def test_jobs_of_a_cluster_are_chunks_of_one_shape_at_one_step(
    tiny_points: list[Point], tmp_path: Path
):
    other = points.make_point(tiny_points[0].config, {"model.stem_features": 16})
    far, chosen = tiny_points[1], [*tiny_points[:3], other, tiny_points[3]]
    assert keys(lanes.chunks(chosen, tmp_path, 2)) == keys(
        [tiny_points[:2], tiny_points[2:4], [other]]
    )
    (far.directory(tmp_path) / "checkpoints" / "12").mkdir(parents=True)
    assert keys(lanes.chunks(chosen, tmp_path, 2)) == keys(
        [[tiny_points[0], tiny_points[2]], [far], [tiny_points[3]], [other]]
    )


def test_lanes_that_a_kill_left_one_save_apart_stay_together(
    tiny_points: list[Point], tmp_path: Path
):
    for point, steps in zip(tiny_points[:3], ((), (4,), (4,)), strict=True):
        directory = point.directory(tmp_path)
        directory.mkdir(parents=True)
        for step in steps:
            (directory / "checkpoints" / str(step)).mkdir(parents=True)
        rundir.write_json(directory / "summary.json", {"trained_together": ["a", "b"]})
    stranger = tiny_points[2].directory(tmp_path) / "summary.json"
    rundir.write_json(stranger, {"trained_together": ["c", "d"]})
    assert keys(lanes.chunks(tiny_points[:3], tmp_path, 3)) == keys(
        [tiny_points[:2], tiny_points[2:3]]
    )


class Killed(BaseException):
    """What ends a process at once: nothing catches it, and nothing is written after it."""


@pytest.mark.slow
def test_lanes_killed_between_any_two_saves_end_in_the_same_bits(
    tiny_points: list[Point], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    chosen, shared = [tiny_points[0], tiny_points[4]], build.Shared()
    runner.register(chosen, tmp_path / "whole")
    runner.work(chosen, tmp_path / "whole", lanes=2, shared=shared)
    save = Checkpoints.save

    def killed(self: Checkpoints, *args: Any) -> None:
        if not left:
            raise Killed
        left.pop()
        save(self, *args)
        self.wait()

    for saves in range(8):  # four of each lane
        workdir, left = tmp_path / f"killed{saves}", [None] * saves
        runner.register(chosen, workdir)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Checkpoints, "save", killed)
            runner.work(chosen, workdir, lanes=2, shared=shared)
        assert set(runner.statuses(chosen, workdir).values()) == {"killed"}
        runner.work(chosen, workdir, lanes=2, shared=shared)
        for point in chosen:
            ours, whole = (point.directory(path) for path in (workdir, tmp_path / "whole"))
            assert resumed_at(ours) == ([4 * (saves // 2)] if saves > 1 else [])
            assert metric_rows(ours) == metric_rows(whole)
            a, b = read_checkpoint(ours), read_checkpoint(whole)
            jax.tree.map(np.testing.assert_array_equal, a.items, b.items)
            assert summary(ours)["test"] == summary(whole)["test"]
