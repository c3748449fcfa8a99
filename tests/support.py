"""Starting the real command in a process of its own, and reading what a run leaves behind."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "runs" / "tiny.py"
TINY_SWEEP = ROOT / "tests" / "runs" / "tiny_sweep.py"

Command = Callable[..., subprocess.CompletedProcess[str]]


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


def summary(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "summary.json").read_text())


def metric_rows(workdir: Path) -> list[dict[str, Any]]:
    """Metric rows without what a clock measured."""
    clocks = ("images_per_second", "data_wait")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in clocks} for line in lines]
