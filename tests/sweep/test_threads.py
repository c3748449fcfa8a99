"""One point, one result: on one core or two, alone or by workers; and what other threads change."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from support import ROOT, TINY_SWEEP

from mobilenet import rundir
from mobilenet.sweep.points import Point, points_of
from mobilenet.train.checkpoints import Checkpoints

CORES: list[int] = sorted(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ())
# Large enough that XLA cuts its sums.
LARGER = {
    "train.global_batch_size": 64,
    "model.stem_features": 16,
    "model.head_features": 64,
    "data.train_examples": 1024,
    "log.every_steps": 1,
    "optimizer.learning_rate": 0.4,
}
PINNED = """
import os, sys
os.sched_setaffinity(0, map(int, sys.argv.pop(1).split(",")))
from mobilenet.cli.main import main
sys.exit(main())
"""


def command(cache: Path, cores: list[int], verb: str, *args: str) -> str:
    """Runs a verb on some cores, with nothing of this process's threads; returns stderr."""
    dropped = ("PJRT_NPROC", "JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    environment = {k: v for k, v in os.environ.items() if k not in dropped}
    done = subprocess.run(
        [sys.executable, "-c", PINNED, ",".join(map(str, cores)), verb, *args],
        env={**environment, "XDG_CACHE_HOME": str(cache)}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def state(workdir: Path) -> dict:
    restored = Checkpoints(workdir / "checkpoints", read_only=True).read_newest()
    assert restored is not None
    return restored.items


def losses(workdir: Path) -> np.ndarray:
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return np.array([row["loss"] for row in rows if row["split"] == "train"])


def experiment_of(path: Path) -> tuple[str, Point]:
    """An experiment file with a sweep of two seeds, and its first point."""
    path.write_text(
        f"import runpy\nTINY = runpy.run_path({str(TINY_SWEEP)!r})\n"
        f"def get_config(arg=''):\n    config = TINY['get_config']()\n"
        f"    config.update_from_flattened_dict({LARGER!r})\n    return config\n"
        "def sweep(arg=''):\n    return [{'seed': 0}, {'seed': 1}]\n"
    )
    from mobilenet import experiment

    module = experiment.load_module(str(path))
    return f"--config={path}", points_of(module.get_config(), module.sweep())[0]


@pytest.mark.slow
@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")
def test_cores_and_workers_change_no_bit_and_threads_do(tmp_path: Path):
    cache = tmp_path / "cache"
    config, point = experiment_of(tmp_path / "larger.py")
    one, two, other, sweep = (tmp_path / name for name in ("one", "two", "other", "sweep"))
    command(cache, CORES[:1], "train", config, f"--workdir={one}")
    command(cache, CORES, "train", config, f"--workdir={two}")
    command(cache, CORES, "sweep", config, f"--workdir={sweep}", "--jobs=2")
    summaries = [rundir.read_json(d / "summary.json") for d in (one, two, point.directory(sweep))]
    assert [s["cores"] for s in summaries] == [1, len(CORES), len(CORES) // 2]
    assert len({s["threads"] for s in summaries}) == 1
    assert summaries[0]["test"] == summaries[1]["test"] == summaries[2]["test"]
    for workdir in (one, point.directory(sweep)):
        jax.tree.map(np.testing.assert_array_equal, state(workdir), state(two))
        np.testing.assert_array_equal(losses(workdir), losses(two))

    # Other threads are other rounding, which training amplifies; the summary tells them apart.
    asked = 2 if summaries[0]["threads"] == 1 else 1
    command(cache, CORES, "train", config, f"--workdir={other}", f"--threads={asked}")
    assert rundir.read_json(other / "summary.json")["threads"] == asked
    ours, theirs = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(state(workdir)["params"])])
        for workdir in (two, other)
    )
    apart = np.linalg.norm(ours - theirs) / np.linalg.norm(ours)
    print(f"parameters apart after {len(losses(two))} steps: {apart:.1e} of their size")
    assert 0 < apart < 0.1

    # Who continues takes the threads again, with whatever cores.
    summary = rundir.read_json(other / "summary.json")
    rundir.write_json(other / "summary.json", summary | {"status": "running"})
    whole = state(other)
    with Checkpoints(other / "checkpoints") as checkpoints:
        checkpoints.discard_after(checkpoints.steps()[0])
    told = command(cache, CORES[:1], "train", f"--workdir={other}")
    again = rundir.read_json(other / "summary.json")
    assert again["threads"] == asked and "computed" not in again and "Resuming" in told
    jax.tree.map(np.testing.assert_array_equal, state(other), whole)
