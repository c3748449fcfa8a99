"""Runs the points of a sweep that are not done: in this process, in several, or on a cluster.

    WORKDIR/points/KEY/     a run directory for each point: config.json, point.json, log.txt, ...
    WORKDIR/plans/          the points of each command, for its worker processes
    WORKDIR/machine.json    the threads that all points are computed with
    WORKDIR/variants.json   the names of the variants

The run directories say what is done: a point is done when its summary says so, and whoever holds
the lock of its directory trains it. So a sweep can be killed and started again, and two sweeps can
work in one directory.
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

from mobilenet import build, rundir, runtime
from mobilenet.config import ConfigError
from mobilenet.data.datasets import DatasetError
from mobilenet.rundir import InUseError, RunDirectoryError
from mobilenet.sweep import lanes as lanes_lib
from mobilenet.sweep import ledger, machine
from mobilenet.sweep.lanes import Standing
from mobilenet.sweep.points import Point, require_sources, write_plan
from mobilenet.sweep.progress import Progress
from mobilenet.train import loop
from mobilenet.train.lanes import LanesApart, Stopped
from mobilenet.train.loop import Parts
from mobilenet.train.signals import Interrupted, Signals, handled

# Statuses of points that a worker may train. Failed ones need `retry_failed`.
OPEN = ("pending", "interrupted", "killed", "damaged")
# Errors of the command, not of a point: a corrected command trains the point.
REFUSALS = (ConfigError, DatasetError)
REFUSED = 2  # exit code of a worker that met one


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

    @property
    def unfinished(self) -> list[str]:
        """Keys of points that have not ended, or whose files are damaged."""
        return [key for key, status in self.statuses.items() if status not in rundir.FINAL]


def statuses(points: Sequence[Point], workdir: Path) -> dict[str, str]:
    """Status of each point: key -> one of `rundir.STATUSES`; RunDirectoryError if none is read."""
    with _using(workdir):
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
      jobs: processes that train points; each has a part of the cores, or an accelerator. With 1,
        this process trains.
      lanes: points of one shape that a process trains together (`mobilenet.build.build_lanes`).
      retry_failed: train points again that failed in an earlier sweep.
      max_failures: start no more points after this many have failed; 0 is no limit.
      progress: show the progress on stderr.

    Returns:
      The outcome; points that another sweep is training are "running" in it.

    Raises:
      Interrupted: by a signal (`mobilenet.train.signals`), after points in progress were saved.
      ConfigError, DatasetError: points cannot train. `check` finds that before anything is written,
        or a point could not begin later; the others were trained.
      RunDirectoryError: the directory cannot be written, or a worker process has died.
    """
    shared = build.Shared()
    check(points, workdir, shared, lanes=lanes, retry_failed=retry_failed)
    register(points, workdir, retry_failed=retry_failed)
    left = sum(status in OPEN for status in statuses(points, workdir).values())
    jobs = max(1, min(jobs, left))
    with Progress(points, workdir, show=progress), _using(workdir):
        machine.join(workdir, computes=jobs == 1)
        if jobs == 1:
            work(points, workdir, lanes=lanes, max_failures=max_failures, shared=shared)
        else:
            plan = write_plan(points, workdir)
            _spawn(plan, workdir, jobs=jobs, lanes=lanes, max_failures=max_failures)
    return Outcome(statuses(points, workdir))


@contextlib.contextmanager
def _using(workdir: Path) -> Iterator[None]:
    """Turns a sweep's directory that cannot be read or written into a RunDirectoryError."""
    try:
        yield
    except OSError as error:
        raise RunDirectoryError(
            f"The sweep's directory {workdir} cannot be used: {error.strerror or error} "
            f"({error.filename or workdir}). Give --workdir a directory that can be written."
        ) from error


def check(
    points: Sequence[Point],
    workdir: Path,
    shared: build.Shared,
    *,
    lanes: int = 1,
    retry_failed: bool = False,
) -> None:
    """Refuses points that cannot train, before any is registered; ended points are not checked.

    While some points are open, all that have begun must have begun with the data as it is now.

    Args:
      points: of the sweep.
      workdir: of the sweep.
      shared: of the runs in this process; it holds the opened data afterwards.
      lanes, retry_failed: as for `run`.

    Raises:
      ConfigError, DatasetError: the data cannot be opened, or does not fit the configuration.
    """
    wanted = (*OPEN, "failed") if retry_failed else OPEN
    found = statuses(points, workdir)
    needed = {str(point.config.data) for point in points if found[point.key] in wanted}
    # Sorted, so that each data set is opened once.
    for point in sorted(points, key=lambda point: str(point.config.data)):
        if str(point.config.data) not in needed:
            continue
        dataset, _ = shared.open(point.config)
        build.check_examples(point.config, dataset, point.directory(workdir))
        if found[point.key] not in wanted:
            continue
        if lanes > 1:
            build.require_no_patience(point.config)
        build.check_data(point.config, dataset)
        build.check_teacher(point.config, dataset)


def register(points: Sequence[Point], workdir: Path, *, retry_failed: bool = False) -> None:
    """Makes the run directories of points that have none, and opens failed ones again if asked.

    The names of the points' variants are written, too (`mobilenet.sweep.ledger`).

    Raises:
      ConfigError: an open point starts from a run that does not exist.
      RunDirectoryError: the directory cannot be written.
    """
    found = statuses(points, workdir)
    require_sources((point for point in points if found[point.key] in OPEN), workdir)
    groups = {point.variant: point.group for point in points}
    with _using(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        ledger.write(
            workdir,
            {p.group: ledger.Variant(p.variant, groups.get(p.baseline, "")) for p in points},
        )
        for point in points:
            directory = point.directory(workdir)
            directory.mkdir(parents=True, exist_ok=True)
            if not (directory / "point.json").exists():
                _record(point, directory, None)
            elif retry_failed and rundir.status(directory) == "failed":
                with contextlib.suppress(InUseError), rundir.locked(directory):
                    _open_again(point, directory)


def _open_again(point: Point, directory: Path) -> None:
    """Makes a failed point an interrupted one, which continues; its records stay."""
    _record(point, directory, None)
    summary = rundir.read_json(directory / "summary.json", dict)
    if summary is not None:
        for name in ("error", "step"):  # where it failed; its checkpoints say what is saved
            summary.pop(name, None)
        rundir.write_json(directory / "summary.json", summary | {"status": "interrupted"})


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
    shared: build.Shared | None = None,
) -> None:
    """Trains points that no other worker trains, one after the other, until none is left.

    Args:
      points: of the sweep, registered.
      workdir: of the sweep.
      lanes: points of one shape that are trained together.
      max_failures: as for `run`, over all workers.
      offset: where to start in the list of shapes, as a fraction of it. Workers that start at
        different shapes compile different ones.
      shared: of the runs in this process; None shares among these points alone.

    Raises:
      Interrupted: by a signal.
      ConfigError, DatasetError: a point could not begin; the others were trained.
      BackendError: JAX has nothing to compute on; no point was begun.
    """
    groups = lanes_lib.shapes(points)
    first = int(offset * len(groups))
    groups = groups[first:] + groups[:first]

    def failed() -> int:
        return sum(status == "failed" for status in statuses(points, workdir).values())

    if any(status in OPEN for status in statuses(points, workdir).values()):
        runtime.require_backend()
    failed_before = failed() if max_failures else 0
    shared = shared or build.Shared()
    refused: list[Exception] = []
    for left in groups:
        while left:
            if max_failures and failed() - failed_before >= max_failures:
                return
            with contextlib.ExitStack() as stack:
                taken = _take(left, workdir, lanes, stack)
                try:
                    if taken:
                        train(taken, workdir, shared)
                except REFUSALS as error:
                    refused.append(error)
    if refused:
        raise refused[0]


def _take(left: list[Point], workdir: Path, count: int, stack: contextlib.ExitStack) -> list[Point]:
    """Locks open points that can train together, at most `count`, until the stack is closed.

    They are removed from `left`, and so are all that are not open. Points at another step stay.
    """
    taken: list[Point] = []
    standings: list[Standing] = []
    for point in list(left):
        if len(taken) == count:
            break
        lock = _lock_if_open(point.directory(workdir))
        if lock is None:
            left.remove(point)
            continue
        own = lanes_lib.standing(point, workdir)
        if not all(own.fits(other) for other in standings):
            lock.close()
            continue
        stack.enter_context(lock)
        left.remove(point)
        taken.append(point)
        standings.append(own)
    return taken


def _lock_if_open(directory: Path) -> contextlib.ExitStack | None:
    """Locks an open point's run directory; None if it is not open or another worker has it."""
    if rundir.status(directory) not in OPEN:
        return None
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(rundir.locked(directory))
        except InUseError:
            return None  # another worker was faster
        # It may have been finished since the status was read.
        if rundir.status(directory, held=True) in OPEN:
            return lock.pop_all()
    return None


def train(
    points: Sequence[Point],
    workdir: Path,
    shared: build.Shared,
    *,
    watch: Callable[[int, Mapping[str, Any]], None] | None = None,
) -> None:
    """Trains points together. Errors of training are recorded with the points, not raised.

    If the points turn out to be at different steps, or if one cannot begin, each trains alone.

    Args:
      points: of one shape, registered and locked by the caller.
      workdir: of the sweep.
      shared: of the runs in this process.
      watch: of `mobilenet.train.loop.Parts`; it may prune the runs.

    Raises:
      Interrupted, KeyboardInterrupt: by a signal.
      ConfigError, DatasetError: a point cannot begin. It stays open: that is no result.
    """
    refused: list[Exception] = []
    for group in _attempt(points, workdir, shared, watch):
        try:
            train([points[index] for index in group], workdir, shared, watch=watch)
        except REFUSALS as error:
            refused.append(error)
    if refused:
        raise refused[0]


def _attempt(
    points: Sequence[Point],
    workdir: Path,
    shared: build.Shared,
    watch: Callable[[int, Mapping[str, Any]], None] | None,
) -> Sequence[Sequence[int]]:
    """Trains points as `train` does; returns groups of indices if they must train separately."""
    directories = [point.directory(workdir) for point in points]
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(open(path / "log.txt", "a")) for path in directories]

        def record(error: Exception) -> None:
            for point, directory, file in zip(points, directories, logs, strict=True):
                traceback.print_exception(error, file=file)
                _record(point, directory, f"{type(error).__name__}: {error}")

        try:
            parts = _begin(points, directories, shared)
        except Exception as error:
            if len(points) > 1:
                return [[index] for index in range(len(points))]
            if isinstance(error, REFUSALS):
                raise
            record(error)
            return []
        groups: Sequence[Sequence[int]] = []
        signals = stack.enter_context(Signals())
        try:
            parts, stream = dataclasses.replace(parts, watch=watch), _Tee(logs)
            loop.train_lanes(parts, directories, stream=stream, signals=signals)  # pyright: ignore[reportArgumentType]
        except Interrupted:
            raise
        except LanesApart as apart:
            groups = apart.groups
        except Stopped:
            pass  # every lane diverged or was pruned; their summaries say so
        except Exception as error:
            record(error)
        if signals.received is not None:  # these points have ended; no other one may begin
            raise _interrupted(signals.received)
        return groups


def _begin(points: Sequence[Point], directories: Sequence[Path], shared: build.Shared) -> Parts:
    """The parts of one run, or of several as lanes."""
    if len(points) == 1:
        return build.build(points[0].config, directories[0], shared=shared)
    return build.build_lanes([point.config for point in points], directories, shared=shared)


def _interrupted(number: int) -> Interrupted:
    return Interrupted(
        number,
        f"Interrupted by {signal.Signals(number).name}; points in progress are saved. The same "
        "command continues.",
    )


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
    """Starts workers, passes signals on to them, and waits."""
    received: list[int] = []

    def forward(number: int, frame: Any) -> None:
        del frame
        received.append(number)
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                worker.send_signal(signal.SIGTERM)

    workers: list[subprocess.Popen[bytes]] = []
    logs: list[tuple[Path, int]] = []
    with handled(forward):
        for index in range(jobs):
            command = [sys.executable, "-m", "mobilenet.sweep.worker", str(os.getpid())]
            command += [str(plan), str(workdir), f"{index}", f"{jobs}", f"{lanes}"]
            command += [f"{max_failures}"]
            with open(workdir / f"worker{index}.log", "a") as log:
                logs.append((Path(log.name), log.tell()))
                workers.append(
                    subprocess.Popen(
                        command,
                        env=os.environ | accelerator_share(index, jobs, accelerators()),
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        # Ctrl-C reaches the whole group of the terminal: this process passes it on.
                        start_new_session=True,
                    )
                )
        codes = [worker.wait() for worker in workers]
    if received:
        raise _interrupted(received[0])
    _raise_broken(codes, logs)


def _raise_broken(codes: Sequence[int], logs: Sequence[tuple[Path, int]]) -> None:
    """Raises the errors of workers: exit codes, and each log with the place to read it from."""
    broken = [index for index, code in enumerate(codes) if code]
    if not broken:
        return
    refused = [index for index in broken if codes[index] == REFUSED]
    path, start = logs[(refused or broken)[0]]
    with open(path, errors="replace") as file:
        file.seek(start)
        last = (file.read().strip().splitlines() or ["nothing"])[-1]
    if refused:
        raise ConfigError(last)
    ends = [f"worker {index} {runtime.describe_exit(codes[index])}" for index in broken]
    raise RunDirectoryError(
        f"{len(broken)} of {len(codes)} workers did not end well: {'; '.join(ends)}. The last line "
        f"of {path} is {last!r}. The same command continues."
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

    JAX reads it when it is imported, so the child must start with it. Empty without accelerators.
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

    With more workers than cores, some share one. The number of cores does not change results: the
    threads belong to the sweep (`mobilenet.sweep.machine`).
    """
    available = sorted(os.sched_getaffinity(0))
    if jobs >= len(available):
        return {available[index % len(available)]}
    return set(available[index * len(available) // jobs : (index + 1) * len(available) // jobs])
