"""Tiny runs: their configuration, the real command in a process of its own, what it leaves."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mobilenet import config as config_lib
from mobilenet import experiment
from mobilenet.rundir import write_json

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "runs" / "tiny.py"
TINY_SWEEP = ROOT / "tests" / "runs" / "tiny_sweep.py"

Command = Callable[..., subprocess.CompletedProcess[str]]


def tiny(**overrides: Any) -> Any:
    """The configuration of `TINY`; __ in a key stands for a dot."""
    config = experiment.load_config(str(TINY), {})
    config_lib.update(config, {k.replace("__", "."): v for k, v in overrides.items()})
    return config


def write_run(
    path: Path, top1: float, overrides: Mapping[str, Any], seed: int = 0, **more: Any
) -> Path:
    """A finished run directory as a sweep leaves it, without checkpoints.

    Args:
      path: the directory.
      top1: fraction of 200 test images.
      overrides: of the configuration, in addition to the seed.
      seed: of the run.
      more: entries of its summary.
    """
    config = config_lib.get_config()
    config_lib.update(config, {**overrides, "seed": seed, "data.data_dir": "/somewhere"})
    path.mkdir(parents=True)
    (path / "config.json").write_text(config_lib.to_json(config))
    summary: dict[str, Any] = {"status": "done", "seed": seed, "step": 20, "total_steps": 20}
    summary |= {"params": 250_000, "macs": 5_000_000, "wall_seconds": 60.0 + seed}
    summary |= {"device": "1 x cpu (cpu)", "processor": "a processor", "commit": "abc"}
    summary |= {"versions": {"jax": "1.0"}, "examples": {"train": 900, "validation": 100}}
    summary |= {"test": {"top1": top1, "top5": 1.0, "loss": 0.5, "examples": 200}}
    write_json(path / "summary.json", summary | more)
    point = {"group": "g", "overrides": {**overrides, "seed": seed}, "error": None}
    write_json(path / "point.json", point)
    write_json(path / "data.json", {"class_names": list("0123456789")})
    (path / "metrics.jsonl").write_text("")
    return path


def environment(cache: Path, devices: int = 1) -> dict[str, str]:
    return {
        **os.environ,
        "XDG_CACHE_HOME": str(cache),
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONUNBUFFERED": "1",
    }


def start(cache: Path, *args: str, devices: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error::DeprecationWarning:mobilenet", "-m", "mobilenet", *args],
        env=environment(cache, devices),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def without_a_reader(*args: str, cache: Path | None = None) -> int:
    """The exit code of a command whose output goes to a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mobilenet", *args],
            env=environment(cache) if cache else None,
            cwd=ROOT,
            stdout=writer,
            stderr=writer,
            timeout=300,
        )
    finally:
        os.close(writer)
    return done.returncode


def summary(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "summary.json").read_text())


def metric_rows(workdir: Path) -> list[dict[str, Any]]:
    """Metric rows without what a clock measured."""
    clocks = ("images_per_second", "data_wait")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in clocks} for line in lines]
