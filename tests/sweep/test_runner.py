"""Sweeps in one process: done points rest, failed ones are told, shapes compile once, lanes."""

import dataclasses
import io
import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from absl import flags
from support import TINY_SWEEP

from mobilenet import build, rundir
from mobilenet.cli import reproduce, sweep
from mobilenet.config import ConfigError
from mobilenet.data.datasets import DatasetError
from mobilenet.sweep import listing, points, runner
from mobilenet.sweep.points import Point
from mobilenet.sweep.progress import Progress
from mobilenet.train import loop, steps
from mobilenet.train.checkpoints import Checkpoints
from mobilenet.train.lanes import Pruned
from mobilenet.train.signals import Interrupted


def summaries(points_: list[Point], workdir: Path) -> list[dict[str, Any]]:
    return [rundir.read_json(p.directory(workdir) / "summary.json") for p in points_]


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that a training step is traced, as every compilation does."""
    seen: list[str] = []
    make = steps.make_train_step

    def counted(*args: Any, **kwargs: Any) -> Any:
        step = make(*args, **kwargs)

        def traced(*values: Any) -> Any:
            seen.append("step")
            return step(*values)

        return traced

    monkeypatch.setattr(steps, "make_train_step", counted)
    return seen


def test_points_of_one_shape_compile_once_and_done_ones_rest(
    tiny_points: list[Point], sweep_directory: Path, traces: list[str]
):
    chosen = tiny_points[::4]  # three rates, three seeds
    first = runner.run(chosen[:2], sweep_directory, progress=False)
    assert first.done == [p.key for p in chosen[:2]] and not first.failed
    assert len(traces) == 1
    before = {p: p.stat().st_mtime_ns for p in sweep_directory.rglob("summary.json")}
    second = runner.run(chosen, sweep_directory, progress=False)
    assert len(second.done) == 3
    after = {p: p.stat().st_mtime_ns for p in sweep_directory.rglob("summary.json")}
    assert {p: after[p] for p in before} == before and len(after) == 3
    assert [s["seed"] for s in summaries(chosen, sweep_directory)] == [
        p.config.seed for p in chosen
    ]


def items(directory: Path) -> Any:
    restored = Checkpoints(directory / "checkpoints", read_only=True).read_newest()
    assert restored is not None
    return restored.items


def test_lanes_equal_runs_of_their_own_and_compile_once(
    tiny_points: list[Point], tmp_path: Path, traces: list[str]
):
    chosen = [tiny_points[i] for i in (0, 4, 8, 11)]  # rates and seeds differ
    together, alone = tmp_path / "lanes", tmp_path / "alone"
    outcome = runner.run(chosen, together, lanes=4, progress=False)
    assert len(outcome.done) == 4 and len(traces) == 1
    runner.run(chosen, alone, progress=False)
    for point in chosen:
        a, b = point.directory(together), point.directory(alone)
        ours, own = (rundir.read_json(d / "summary.json") for d in (a, b))
        assert ours["lanes"] == 4 and "lanes" not in own
        assert ours["test"]["loss"] == pytest.approx(own["test"]["loss"], rel=1e-5)
        assert ours["validation"]["top1"] == own["validation"]["top1"]
        # Batched matrix products add in another order: float32 rounding, over 16 steps.
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4),
            items(a)["params"], items(b)["params"],
        )  # fmt: skip
        rows = [json.loads(line) for line in (a / "metrics.jsonl").read_text().splitlines()]
        lines = [json.loads(line) for line in (b / "metrics.jsonl").read_text().splitlines()]
        assert [(r["step"], r["split"]) for r in rows] == [(r["step"], r["split"]) for r in lines]
        assert all(
            x["loss"] == pytest.approx(y["loss"], rel=1e-5)
            and x.get("learning_rate") == y.get("learning_rate")
            for x, y in zip(rows, lines, strict=True)
        )


@pytest.mark.slow
def test_workers_and_commands_train_as_this_process_does(
    tiny_points: list[Point], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Compiled in full, for the same vectors: each program has to ask for those itself.
    chosen = tiny_points[:2]
    here, workers, command = tmp_path / "here", tmp_path / "workers", tmp_path / "command"
    runner.run(chosen, here, progress=False)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    runner.run(chosen, workers, jobs=2, progress=False)
    subprocess.run(
        [
            *(sys.executable, "-m", "mobilenet", "train", f"--config={TINY_SWEEP}"),
            *(f"--config.{key}={value}" for key, value in chosen[0].overrides.items()),
            f"--workdir={command}",
        ],
        check=True,
    )
    wanted = [s["test"] for s in summaries(chosen, here)]
    assert [s["test"] for s in summaries(chosen, workers)] == wanted
    assert rundir.read_json(command / "summary.json")["test"] == wanted[0]


@pytest.mark.slow
def test_lanes_continue_where_the_slowest_saved(tiny_points: list[Point], tmp_path: Path):
    chosen = [tiny_points[0], tiny_points[4]]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    runner.run(chosen, whole, lanes=2, progress=False)
    runner.run(chosen, broken, lanes=2, progress=False)
    # As a kill between the two lanes' last saves leaves them: one at step 16, one at 12.
    for index, point in enumerate(chosen):
        directory = point.directory(broken)
        summary = rundir.read_json(directory / "summary.json")
        rundir.write_json(directory / "summary.json", summary | {"status": "running"})
        with Checkpoints(directory / "checkpoints") as checkpoints:
            checkpoints.discard_after(12 if index else 16)
    assert list(runner.statuses(chosen, broken).values()) == ["killed", "killed"]
    ahead = chosen[0].directory(broken) / "checkpoints" / "16"
    written = {path: path.stat().st_mtime_ns for path in ahead.rglob("*")}
    runner.run(chosen, broken, lanes=2, progress=False)
    # The lane that was ahead computed the same steps again and kept what it had.
    assert {path: path.stat().st_mtime_ns for path in ahead.rglob("*")} == written
    for point in chosen:
        jax.tree.map(
            np.testing.assert_array_equal,
            items(point.directory(broken)), items(point.directory(whole)),
        )  # fmt: skip
    assert [s["test"] for s in summaries(chosen, broken)] == [
        s["test"] for s in summaries(chosen, whole)
    ]


def test_a_lane_that_diverges_ends_alone(tiny_points: list[Point], sweep_directory: Path):
    good = tiny_points[0]
    wild = points.make_point(good.config, {"optimizer.learning_rate": 1e30})
    outcome = runner.run([good, wild], sweep_directory, lanes=2, progress=False)
    assert outcome.statuses == {good.key: "done", wild.key: "diverged"}
    ours, theirs = summaries([good, wild], sweep_directory)
    assert math.isfinite(ours["test"]["loss"]) and "test" not in theirs
    assert "learning_rate" in theirs["error"]


def test_lanes_of_different_shapes_are_refused(tiny_points: list[Point], tmp_path: Path):
    other = points.make_point(tiny_points[0].config, {"model.stem_features": 16})
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(build.ConfigError, match="model.stem_features"):
        build.build_lanes([tiny_points[0].config, other.config], [tmp_path / "a", tmp_path / "b"])


def test_failed_points_are_recorded_and_the_others_go_on(
    tiny_points: list[Point], sweep_directory: Path
):
    *broken, good = tiny_points[:3]
    runner.register(broken, sweep_directory)
    for point in broken:  # metrics cannot be written there
        (point.directory(sweep_directory) / "metrics.jsonl").mkdir()
    outcome = runner.run([*broken, good], sweep_directory, progress=False)
    assert outcome.failed == [p.key for p in broken] and outcome.done == [good.key]
    error = rundir.read_json(broken[0].directory(sweep_directory) / "point.json")["error"]
    assert "metrics.jsonl could not be read: Is a directory" in error
    assert "Traceback" in (broken[0].directory(sweep_directory) / "log.txt").read_text()
    # Left alone, until asked.
    again = (broken[0].directory(sweep_directory) / "log.txt").stat().st_mtime_ns
    runner.run([*broken, good], sweep_directory, progress=False)
    assert (broken[0].directory(sweep_directory) / "log.txt").stat().st_mtime_ns == again
    runner.run(broken, sweep_directory, retry_failed=True, max_failures=1, progress=False)
    logs = [(p.directory(sweep_directory) / "log.txt").read_text() for p in broken]
    assert logs[1].count("RunDirectoryError: ") < 2 <= logs[0].count("RunDirectoryError: ")
    assert runner.statuses(broken, sweep_directory) == {
        broken[0].key: "failed", broken[1].key: "pending",
    }  # fmt: skip


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def test_data_that_cannot_be_opened_is_the_commands_error_and_no_points(
    tiny_points: list[Point], sweep_directory: Path
):
    good = tiny_points[0]
    lost = {"data.name": "folder", "data.data_dir": "no/folder"}
    with pytest.raises(DatasetError, match="no/folder"):
        runner.run([good, points.make_point(good.config, lost)], sweep_directory, progress=False)
    assert not sweep_directory.exists()
    runner.run([good], sweep_directory, progress=False)
    gone = dataclasses.replace(good, config=points.make_point(good.config, lost).config)
    assert runner.run([gone], sweep_directory, progress=False).done == [good.key]  # needs none


@pytest.mark.parametrize(
    ("changes", "lanes", "message"),
    [
        ({"train.global_batch_size": 1024}, 1, "has 128 examples"),
        ({"model.num_classes": 5}, 1, "has 10 classes"),
        ({"compress.distillation.teacher": "no/run"}, 1, "not a complete run"),
        ({"train.patience": 2}, 2, "which is not possible for lanes"),
        ({"train.patience": 2, "data.validation_fraction": 0.0}, 1, "no validation split"),
    ],
)
def test_configurations_that_do_not_fit_the_data_are_refused_before_anything_is_written(
    tiny_points: list[Point], sweep_directory: Path, changes: Any, lanes: int, message: str
):
    wrong = [points.make_point(p.config, changes) for p in tiny_points[:2]]
    with pytest.raises(ConfigError, match=message):
        runner.run([tiny_points[2], *wrong], sweep_directory, lanes=lanes, progress=False)
    assert not sweep_directory.exists()


def test_data_that_go_away_later_leave_points_as_they_were(
    tiny_points: list[Point], sweep_directory: Path
):
    good = tiny_points[0]
    lost = {"data.name": "folder", "data.data_dir": "no/folder"}
    planned = [points.make_point(good.config, lost), good]
    runner.register(planned, sweep_directory)
    with pytest.raises(DatasetError, match="no/folder"):
        runner.work(planned, sweep_directory)
    assert list(runner.statuses(planned, sweep_directory).values()) == ["pending", "done"]
    left = {path.name for path in files(planned[0].directory(sweep_directory))}
    assert left == {"point.json", "log.txt", ".lock"}


def test_workers_say_what_they_could_not_begin(tiny_points: list[Point], sweep_directory: Path):
    good = tiny_points[0]
    lost = {"data.name": "folder", "data.data_dir": "no/folder"}
    planned = [points.make_point(good.config, lost)]
    runner.register(planned, sweep_directory)
    plan = points.write_plan(planned, sweep_directory)
    with pytest.raises(ConfigError, match="no/folder"):
        runner._spawn(plan, sweep_directory, jobs=1, lanes=1, max_failures=0)


def test_workers_that_died_are_named_with_their_signals(tmp_path: Path):
    log = tmp_path / "worker1.log"
    log.write_text("of an earlier sweep\nthe last words\n")
    with pytest.raises(rundir.RunDirectoryError) as caught:
        runner._raise_broken([0, -9, 1], [(tmp_path / "worker0.log", 0), (log, 20), (log, 20)])
    for words in ("worker 1 was ended by SIGKILL", "worker 2 ended with code 1", "last words"):
        assert words in str(caught.value)


def test_failed_points_that_are_retried_keep_what_they_recorded(
    tiny_points: list[Point], sweep_directory: Path
):
    (point,) = chosen = tiny_points[:1]
    runner.register(chosen, sweep_directory)
    path = point.directory(sweep_directory) / "summary.json"
    rundir.write_json(path, {"status": "failed", "error": "no space", "wall_seconds": 9.0})
    runner.register(chosen, sweep_directory, retry_failed=True)
    assert rundir.read_json(path) == {"status": "interrupted", "wall_seconds": 9.0}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_directory_that_cannot_be_written_is_refused(
    tiny_points: list[Point], tmp_path: Path, jobs: int
):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "sweep", tmp_path / ("long" * 1000)):
        with pytest.raises(rundir.RunDirectoryError, match="cannot be used|could not be read"):
            runner.run(tiny_points[:2], workdir, jobs=jobs, progress=False)


def test_what_is_not_done_is_in_the_exit_code(
    tiny_points: list[Point], sweep_directory: Path, capsys: pytest.CaptureFixture[str]
):
    for status, code in (
        ("done", 0), ("diverged", 3), ("failed", 1), ("running", 1), ("interrupted", 1),
        ("killed", 1), ("pending", 1), ("damaged", 1),
    ):  # fmt: skip
        outcome = runner.Outcome({point.key: status for point in tiny_points})
        assert sweep.report(tiny_points, outcome, sweep_directory) == code, status
        assert ("another sweep" in capsys.readouterr().out) == (status == "running")
    pending = runner.Outcome({point.key: "pending" for point in tiny_points})
    assert sweep.report(tiny_points, pending, sweep_directory, waited=False) == 0


@pytest.mark.parametrize("name", ["point.json", "summary.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"status": "done"} more'])
def test_damaged_points_are_named(
    tiny_points: list[Point], sweep_directory: Path, name: str, content: str
):
    chosen = tiny_points[:1]
    runner.register(chosen, sweep_directory)
    (chosen[0].directory(sweep_directory) / name).write_text(content)
    statuses = runner.statuses(chosen, sweep_directory)
    assert list(statuses.values()) == ["damaged"]
    assert name in listing.summary(chosen, statuses, sweep_directory)
    with Progress(chosen, sweep_directory, stream=io.StringIO()) as progress:
        assert "damaged" in progress.headline()


@pytest.mark.usefixtures("default_hangup")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_too_late_for_a_point_ends_the_sweep(
    tiny_points: list[Point], sweep_directory: Path, number: signal.Signals
):
    chosen = tiny_points[:2]
    runner.register(chosen, sweep_directory)
    write = rundir.write_json

    def written(path: Path, value: Any) -> None:
        write(path, value)
        if path.name == "summary.json" and value["status"] == "done":
            signal.raise_signal(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rundir, "write_json", written)
        with pytest.raises(Interrupted, match=number.name):
            runner.work(chosen, sweep_directory)
    assert list(runner.statuses(chosen, sweep_directory).values()) == ["done", "pending"]


def test_points_that_another_sweep_trains_are_left_to_it(
    tiny_points: list[Point], sweep_directory: Path
):
    mine, theirs = tiny_points[:2]
    runner.register([mine, theirs], sweep_directory)
    with rundir.locked(theirs.directory(sweep_directory)):
        outcome = runner.run([mine, theirs], sweep_directory, progress=False)
        assert outcome.statuses == {mine.key: "done", theirs.key: "running"}
    assert runner.run([mine, theirs], sweep_directory, progress=False).done == [
        mine.key, theirs.key,
    ]  # fmt: skip


def test_a_changed_configuration_is_a_new_point(tiny_points: list[Point], sweep_directory: Path):
    point = tiny_points[0]
    changed = points.make_point(point.config, {"train.num_epochs": 1.0})
    runner.run([point], sweep_directory, progress=False)
    outcome = runner.run([point, changed], sweep_directory, progress=False)
    assert len(outcome.done) == 2
    assert [s["step"] for s in summaries([point, changed], sweep_directory)] == [16, 8]


@pytest.mark.usefixtures("default_hangup")
def test_a_terminal_that_is_closed_saves_unless_that_is_ignored(
    tiny_points: list[Point], tmp_path: Path
):
    def watch(step: int, validation: Any) -> None:
        signal.raise_signal(signal.SIGHUP)

    for name in ("closed", "nohup"):
        (tmp_path / name).mkdir()
    parts = dataclasses.replace(
        build.build(tiny_points[0].config, tmp_path / "closed"), watch=watch
    )
    with pytest.raises(Interrupted, match="SIGHUP; step 9 of 16 is saved"):
        loop.train(parts, tmp_path / "closed")
    assert rundir.status(tmp_path / "closed") == "interrupted"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert loop.train(parts, tmp_path / "nohup")["status"] == "done"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_pruned_runs_end_with_their_reason(tiny_points: list[Point], tmp_path: Path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    parts = build.build(tiny_points[0].config, workdir)
    seen: list[int] = []

    def watch(step: int, validation: Any) -> None:
        seen.append(step)
        assert 0 <= validation["top1"] <= 1
        raise Pruned(step, "hopeless")

    with pytest.raises(Pruned):
        loop.train(dataclasses.replace(parts, watch=watch), workdir)
    assert seen == [8] and rundir.status(workdir) == "pruned"
    assert rundir.read_json(workdir / "summary.json")["error"] == "hopeless"


def test_workers_share_cores_and_accelerators():
    available = runner.cores(0, 1)
    assert set().union(*(runner.cores(i, 2) for i in range(2))) == available
    assert all(len(runner.cores(i, 64)) == 1 for i in range(64))
    shares = [runner.accelerator_share(i, 5, ["0", "1"]) for i in range(5)]
    assert [s["CUDA_VISIBLE_DEVICES"] for s in shares] == ["0", "1", "0", "1", "0"]
    for name, sharing in (("0", 3), ("1", 2)):
        parts = [float(s["XLA_PYTHON_CLIENT_MEM_FRACTION"]) for s in shares
                 if s["CUDA_VISIBLE_DEVICES"] == name]  # fmt: skip
        assert len(parts) == sharing and sum(parts) <= 0.901
    assert runner.accelerator_share(0, 2, []) == {}


@pytest.mark.parametrize("verb", [sweep, reproduce])
def test_verbs_that_name_a_flag_have_it(verb: Any):
    values = flags.FlagValues()
    verb.define(values)
    assert "retry_failed" in values
