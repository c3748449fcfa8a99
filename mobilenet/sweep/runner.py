"""Runs the points of a sweep that are not done: in this process, in several, or on a cluster.

    WORKDIR/points/KEY/     a run directory each, with point.json beside config.json; log.txt
    WORKDIR/plans/          the points of each command, for its worker processes

The run directories are the ledger: a point is done when its summary says so, and whoever holds the
lock of its directory trains it. So a sweep can be killed and started again, and two sweeps can work
in one directory.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from mobilenet import build, rundir
from mobilenet.rundir import InUseError, RunDirectoryError
from mobilenet.sweep.points import Point, require_sources, write_plan
from mobilenet.sweep.progress import Progress
from mobilenet.train import loop

# Statuses of points that a worker may take. Failed ones wait for `retry_failed`.
OPEN = ("pending", "interrupted", "killed", "damaged")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Statuses of all points after a sweep (`rundir.STATUSES`): key -> status."""

    statuses: Mapping[str, str]

    def having(self, *statuses: str) -> list[str]:
        """Keys of the points with one of these statuses, in order."""
        return [key for key, status in self.statuses.items() if status in statuses]

    @property
    def done(self) -> list[str]:
        """Keys of points that trained to the end."""
        return self.having("done")

    @property
    def failed(self) -> list[str]:
        """Keys of points that an error ended."""
        return self.having("failed")


def statuses(points: Sequence[Point], workdir: Path) -> dict[str, str]:
    """Status of each point: key -> one of `rundir.STATUSES`."""
    return {point.key: rundir.status(point.directory(workdir)) for point in points}


def run(
    points: Sequence[Point],
    workdir: Path,
    *,
    jobs: int = 1,
    lanes: int = 1,
    retry_failed: bool = False,
    max_failures: int = 0,
    progress: bool = True,
) -> Outcome:
    """Trains every point that is not done yet, on this machine.

    Args:
      points: of the sweep.
      workdir: of the sweep; each point has its run directory in it.
      jobs: processes that train points; each has its share of the cores, or an accelerator. 1 is
        this process.
      lanes: points of one shape that a process trains together (`mobilenet.build.build_lanes`).
      retry_failed: try points again that failed in an earlier sweep.
      max_failures: start no more points after so many have failed; 0 is no limit.
      progress: show it on stderr.

    Returns:
      The outcome; points that another sweep is training are "running" in it.

    Raises:
      Interrupted: by SIGINT or SIGTERM, after points in progress were saved.
    """
    register(points, workdir, retry_failed=retry_failed)
    left = sum(status in OPEN for status in statuses(points, workdir).values())
    jobs = max(1, min(jobs, left))
    with Progress(points, workdir, show=progress):
        if jobs == 1:
            work(points, workdir, lanes=lanes, max_failures=max_failures)
        else:
            plan = write_plan(points, workdir)
            _spawn(plan, workdir, jobs=jobs, lanes=lanes, max_failures=max_failures)
    return Outcome(statuses(points, workdir))


def register(points: Sequence[Point], workdir: Path, *, retry_failed: bool = False) -> None:
    """Makes the run directories of points that have none, and opens failed ones again if asked.

    Raises:
      ConfigError: a point that is open starts from what is not there.
    """
    found = statuses(points, workdir)
    require_sources(point for point in points if found[point.key] in OPEN)
    for point in points:
        directory = point.directory(workdir)
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / "point.json").exists():
            _record(point, directory, None)
        elif retry_failed and rundir.status(directory) == "failed":
            with contextlib.suppress(InUseError), rundir.locked(directory):
                _record(point, directory, None)
                (directory / "summary.json").unlink(missing_ok=True)


def _record(point: Point, directory: Path, error: str | None) -> None:
    rundir.write_json(
        directory / "point.json",
        {
            "key": point.key,
            "group": point.group,
            "overrides": dict(point.overrides),
            "error": error,
        },
    )


def work(
    points: Sequence[Point],
    workdir: Path,
    *,
    lanes: int = 1,
    max_failures: int = 0,
    offset: float = 0.0,
) -> None:
    """Trains points that nobody has taken, one after the other, until none is left.

    Args:
      points: of the sweep, registered.
      workdir: of the sweep.
      lanes: points of one shape that are trained together.
      max_failures: as for `run`, over all workers.
      offset: where in the list of shapes to start, as a fraction of it: workers that start at
        different shapes compile different ones.

    Raises:
      Interrupted: by a signal.
    """
    shapes: dict[str, list[Point]] = {}
    for point in points:
        shapes.setdefault(build.lane_key(point.config), []).append(point)
    groups = list(shapes.values())
    first = int(offset * len(groups))
    groups = groups[first:] + groups[:first]

    def failed() -> int:
        return sum(status == "failed" for status in statuses(points, workdir).values())

    failed_before = failed() if max_failures else 0
    shared = build.Shared()
    for group in groups:
        candidates = iter(group)
        while True:
            if max_failures and failed() - failed_before >= max_failures:
                return
            with contextlib.ExitStack() as stack:
                taken = list(_take(candidates, workdir, lanes, stack))
                if not taken:
                    break
                train(taken, workdir, shared)


def _take(
    candidates: Iterator[Point], workdir: Path, count: int, stack: contextlib.ExitStack
) -> Iterator[Point]:
    """Locks the next open points, at most `count`, until the stack is left."""
    for point in candidates:
        directory = point.directory(workdir)
        if rundir.status(directory) not in OPEN:
            continue
        lock = contextlib.ExitStack()
        try:
            lock.enter_context(rundir.locked(directory))
        except InUseError:
            continue  # another worker was faster
        # Asked before the lock was held: it may have been finished in between.
        if rundir.status(directory, held=True) not in OPEN:
            lock.close()
            continue
        stack.enter_context(lock)
        yield point
        count -= 1
        if count == 0:
            return


def train(
    points: Sequence[Point],
    workdir: Path,
    shared: build.Shared,
    *,
    watch: Callable[[int, Mapping[str, Any]], None] | None = None,
) -> None:
    """Trains points together; what goes wrong is recorded with the points and not raised.

    Args:
      points: of one shape, registered and locked by the caller.
      workdir: of the sweep.
      shared: of the runs in this process.
      watch: of `mobilenet.train.loop.Parts`; it may prune the runs.

    Raises:
      Interrupted, KeyboardInterrupt: by a signal.
    """
    directories = [point.directory(workdir) for point in points]
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(open(path / "log.txt", "a")) for path in directories]
        try:
            if len(points) == 1:
                parts = build.build(points[0].config, directories[0], shared=shared)
            else:
                configs = [point.config for point in points]
                parts = build.build_lanes(configs, directories, shared=shared)
            stream: Any = _Tee(logs)
            parts = dataclasses.replace(parts, watch=watch)
            loop.train_lanes(parts, directories, stream=stream)
        except loop.Interrupted:
            raise
        except loop.Stopped:
            pass  # every lane diverged or was pruned, as their summaries say
        except Exception as error:
            for point, directory, file in zip(points, directories, logs, strict=True):
                traceback.print_exc(file=file)
                _record(point, directory, f"{type(error).__name__}: {error}")


class _Tee:
    """One text stream into several files."""

    def __init__(self, files: Sequence[TextIO]) -> None:
        self._files = files

    def write(self, text: str) -> int:
        for file in self._files:
            file.write(text)
        return len(text)

    def flush(self) -> None:
        for file in self._files:
            file.flush()

    def isatty(self) -> bool:
        return False


# ------------------------------------------------------------------------ several processes


def _spawn(plan: Path, workdir: Path, *, jobs: int, lanes: int, max_failures: int) -> None:
    """Starts workers, hands signals on to them, and waits."""
    received: list[int] = []

    def forward(number: int, frame: Any) -> None:
        del frame
        received.append(number)
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                worker.send_signal(signal.SIGTERM)

    workers: list[subprocess.Popen[bytes]] = []
    before = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        for index in range(jobs):
            command = [sys.executable, "-m", "mobilenet.sweep.worker", str(plan), str(workdir)]
            command += [f"{index}", f"{jobs}", f"{lanes}", f"{max_failures}"]
            log = open(workdir / f"worker{index}.log", "a")  # noqa: SIM115
            with log:
                workers.append(
                    subprocess.Popen(
                        command,
                        env=os.environ | accelerator_share(index, jobs, accelerators()),
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        # Ctrl-C reaches the terminal's whole group: this process hands it on.
                        start_new_session=True,
                    )
                )
        codes = [worker.wait() for worker in workers]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise loop.Interrupted(
            received[0],
            f"Interrupted by {signal.Signals(received[0]).name}; points in progress are saved. The "
            "same command continues.",
        )
    broken = [index for index, code in enumerate(codes) if code]
    if broken:
        raise RunDirectoryError(
            f"{len(broken)} of {jobs} workers ended with an error; the last lines of "
            f"{workdir / f'worker{broken[0]}.log'} say which. The same command continues."
        )


def accelerators() -> list[str]:
    """Names of this machine's NVIDIA GPUs for CUDA_VISIBLE_DEVICES, without starting JAX."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name]
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(i) for i, line in enumerate(found.stdout.splitlines()) if line.startswith("GPU")]


def accelerator_share(index: int, jobs: int, names: Sequence[str]) -> dict[str, str]:
    """Environment of worker `index` of `jobs`: its accelerator and its part of the memory.

    It must be set for the child: JAX reads it when it is imported. Empty without accelerators.
    """
    if not names:
        return {}
    mine = index % len(names)
    sharing = len(range(mine, jobs, len(names)))
    return {
        "CUDA_VISIBLE_DEVICES": names[mine],
        # JAX's own default for one process is three quarters of the memory.
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / sharing if sharing > 1 else 0.75:.3f}",
    }


def cores(index: int, jobs: int) -> set[int]:
    """The cores of worker `index` of `jobs`: an equal part of those this process may use.

    With more workers than cores some share one.
    """
    available = sorted(os.sched_getaffinity(0))
    if jobs >= len(available):
        return {available[index % len(available)]}
    return set(available[index * len(available) // jobs : (index + 1) * len(available) // jobs])
