"""Runs cases: every implementation in its own process, in alternating turns, and a row for each.

The speed of a shared machine changes from minute to minute. So implementations are never timed one
after the other: in each round, each implementation has one turn, and ratios are taken within a
round.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from mobilenet import architecture, rundir, runtime
from mobilenet import config as config_lib
from mobilenet.config import Config
from mobilenet.models import cost
from mobilenet.report import benchmarks
from mobilenet.report import rows as table

TURN_SECONDS = 1.0  # a turn repeats short steps for about this time
MAX_STEPS = 50  # per turn
# An implementation with a longer step gets only this many turns: its ratio will not be close to 1.
SLOW_SECONDS, SLOW_ROUNDS = 5.0, 3
AGREEMENT = 2e-3  # relative difference of the first step's check between float32 implementations
ROUNDED = 0.05  # the same if one of them rounds: bfloat16, or eight bits


class BenchmarkError(RuntimeError):
    """A case cannot be measured; the message says why."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Implementations that do the same work on the same shapes.

    Attributes:
      name: of the case.
      work: "train", "evaluate" or "block" (`implementations.Spec`).
      config: complete configuration.
      batch_size: images per step.
      num_classes: of the classifier.
      implementations: names in `implementations.NAMES`; a ratio is the time of one divided by the
        time of the first.
      model: name of the network in the table.
      block: for the work "block".
      memory: "kept" lets them keep freed memory (`mobilenet.runtime`), "system" does not.
    """

    name: str
    work: str
    config: Config
    batch_size: int
    num_classes: int = 1000
    implementations: tuple[str, ...] = ("ours",)
    model: str = ""
    block: str = ""
    memory: str = "kept"

    def request(self, implementation: str) -> str:
        """The argument with which a worker is started."""
        fields = ("work", "batch_size", "num_classes", "block", "memory")
        return json.dumps(
            {
                "implementation": implementation,
                "parent": os.getpid(),
                "config": config_lib.to_json(self.config),
                **{name: getattr(self, name) for name in fields},
            }
        )


class Worker:
    """An implementation's process."""

    def __init__(self, case: Case, implementation: str) -> None:
        self.case = case
        self.implementation = implementation
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mobilenet.benchmark.worker", case.request(implementation)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            self.started = self._answer()
        except BaseException:
            self.close()
            raise

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None and self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            last = self._process.stderr.read().strip().splitlines()[-5:]
            raise BenchmarkError(
                f"The process of {self.implementation} "
                f"{runtime.describe_exit(self._process.returncode)}: {' / '.join(last)}"
            )
        found = json.loads(line)
        if "error" in found:
            raise BenchmarkError(f"{self.implementation}: {found['error']}")
        return found

    def _ask(self, text: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which `_answer` reports
            self._process.stdin.write(text + "\n")
            self._process.stdin.flush()
        return self._answer()

    def turn(self, steps: int) -> list[float]:
        """Seconds of each of `steps` steps."""
        return self._ask(f"run {steps}")["seconds"]

    def finish(self) -> dict[str, Any]:
        """Measurements at the end; the process ends."""
        return self._ask("finish")

    def close(self) -> None:
        """Ends the process, in any state."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def _workers(cases: Sequence[Case]) -> Iterator[list[Worker]]:
    with contextlib.ExitStack() as stack:
        workers = []
        for case in cases:
            # One after the other, so that they do not compile at the same time.
            for implementation in available(case.implementations):
                worker = Worker(case, implementation)
                stack.callback(worker.close)
                workers.append(worker)
        yield workers


def available(implementations: Sequence[str]) -> list[str]:
    """The implementations that are installed: PyTorch and TensorFlow are extras."""
    needs = {"torch": "torch", "torch_compile": "torch", "tf_data": "tensorflow"}
    return [s for s in implementations if s not in needs or importlib.util.find_spec(needs[s])]


def measure(
    case: Case, rounds: int, environment: Mapping[str, Any], say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Rows of a case, one for each implementation; see `measure_together`."""
    return measure_together([case], rounds, environment, say)


def measure_together(
    cases: Sequence[Case],
    rounds: int,
    environment: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Rows of several cases, one for each implementation; all have a turn in every round.

    This is for times that are compared between cases, such as those of different networks. All
    processes exist at the same time, with the memory that they need.

    Args:
      cases: what to measure.
      rounds: turns of every implementation, at least 1.
      environment: from `records.environment`.
      say: gets lines of progress.

    Raises:
      BenchmarkError: an implementation fails, or its result differs from that of the first of its
        case.
    """
    with _workers(cases) as workers:
        firsts: dict[str, Worker] = {}
        for worker in workers:
            name = (
                f"{worker.case.name}, {worker.implementation}"
                if len(cases) > 1
                else worker.implementation
            )
            say(f"  {name}: first step {worker.started['first_step_seconds']:.1f} s")
            _agree(worker.case, firsts.setdefault(worker.case.name, worker), worker)
        # The second step needs no compilation: its time decides how many steps fill a turn.
        pace = {worker: worker.turn(1)[0] for worker in workers}
        turns: dict[Worker, list[float]] = {worker: [] for worker in workers}
        for index in range(rounds):
            for worker in workers:
                if pace[worker] > SLOW_SECONDS and index >= SLOW_ROUNDS:
                    continue
                steps = min(MAX_STEPS, max(1, round(TURN_SECONDS / pace[worker])))
                turns[worker].append(median(worker.turn(steps)))
        facts = {worker: worker.finish() for worker in workers}
    return [
        _row(worker, turns[worker], turns[firsts[worker.case.name]], facts[worker], environment)
        for worker in workers
    ]


def _agree(case: Case, first: Worker, worker: Worker) -> None:
    ours, theirs = first.started["check"], worker.started["check"]
    exact = case.config.model.dtype == "float32"
    limit = AGREEMENT if exact and worker.implementation != "qat" else ROUNDED
    if not abs(ours - theirs) <= limit * max(abs(ours), 1e-30):
        raise BenchmarkError(
            f"{case.name}: the first step of {worker.implementation} gives {theirs:.6g}, but that "
            f"of {first.implementation} gives {ours:.6g}; they do not compute the same."
        )


def _row(
    worker: Worker,
    turns: list[float],
    reference: list[float],
    facts: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    case = worker.case
    costs = cost.totals(architecture.layer_costs(case.config, case.num_classes))
    ratios = sorted(theirs / ours for theirs, ours in zip(turns, reference, strict=False))
    seconds = median(turns)
    row: dict[str, Any] = {
        "case": case.name,
        "work": case.work,
        "implementation": worker.implementation,
        "model": case.model,
        "image_size": case.config.data.image_size,
        "batch_size": case.batch_size,
        "params": costs.params,
        "macs": costs.macs,
        "seconds": f"{seconds:.5g}",
        "seconds_low": f"{min(turns):.5g}",
        "seconds_high": f"{max(turns):.5g}",
        "images_per_second": f"{case.batch_size / seconds:.5g}",
        "ratio": f"{median(ratios):.4g}",
        "ratio_low": f"{ratios[0]:.4g}",
        "ratio_high": f"{ratios[-1]:.4g}",
        "first_step_seconds": f"{worker.started['first_step_seconds']:.4g}",
        "peak_mb": f"{facts['peak_bytes'] / 1e6:.0f}",
        "temp_mb": f"{facts['temp_bytes'] / 1e6:.0f}" if "temp_bytes" in facts else "",
        "bandwidth_share": "",
        "check": f"{worker.started['check']:.7g}",
        "rounds": len(turns),
        "memory": "kept" if worker.started["kept"] else "system",
        "device": environment["device"],
        "processor": environment["processor"],
        "versions": " ".join(f"{k}={v}" for k, v in environment["versions"].items()),
        "environment": " ".join(
            f"{name}={value}"
            for name, value in sorted(os.environ.items())
            if name.startswith(("MALLOC_", "GLIBC_", "XLA_", "OMP_"))
        ),
        "commit": environment["commit"],
    }
    if "bytes_per_second" in facts and "accessed_bytes" in facts:
        share = facts["accessed_bytes"] / seconds / facts["bytes_per_second"]
        row["bandwidth_share"] = f"{share:.3f}"
    return row


def run(
    cases: Sequence[Case],
    path: Path,
    *,
    rounds: int,
    environment: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Measures the cases that have no rows in `path`, and adds their rows after each case.

    Returns:
      All rows of `path`.
    """
    rows: list[dict[str, Any]] = list(table.read(path))
    done = {row["case"] for row in rows}
    for case in cases:
        if case.name in done:
            say(f"{case.name}: already measured, in {path}")
            continue
        say(f"{case.name}:")
        new = measure(case, rounds, environment, say)
        rows += new
        table.write(path, benchmarks.TABLE.fields, rows)
        rundir.write_json(path.with_suffix(".json"), rows)
        for row in new:
            say(describe(row))
    return rows


def describe(row: Mapping[str, Any]) -> str:
    """A row as one line for the terminal."""
    return (
        f"  {row['implementation']:<14} {1e3 * float(row['seconds']):>9.1f} ms "
        f"({1e3 * float(row['seconds_low']):.1f}..{1e3 * float(row['seconds_high']):.1f})  "
        f"{float(row['images_per_second']):>8.1f} images/s  x{float(row['ratio']):.2f} "
        f"({float(row['ratio_low']):.2f}..{float(row['ratio_high']):.2f})  {row['peak_mb']} MB"
    )
