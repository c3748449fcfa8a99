"""Points of a sweep as jobs of a Slurm cluster, through submitit.

    WORKDIR/slurm/            scripts, logs and results of the jobs, as submitit keeps them
    WORKDIR/points/KEY/slurm.json    the job that has the point

A job trains its points as a local worker does, so done points, locks and errors mean the same. A
job that is preempted, or reaches its time limit, saves, is queued again, and continues.
"""

import contextlib
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilenet import build, rundir, runtime
from mobilenet import settings as settings_lib
from mobilenet.config import ConfigError
from mobilenet.sweep import lanes as lanes_lib
from mobilenet.sweep import machine, runner
from mobilenet.sweep import points as points_lib
from mobilenet.sweep.points import Point
from mobilenet.sweep.progress import Progress
from mobilenet.train.signals import Interrupted

# --slurm=KEY=VALUE: what it is called there and by submitit, and its type.
SETTINGS = {
    "partition": ("slurm_partition", str),
    "time": ("timeout_min", int),  # minutes
    "cpus": ("cpus_per_task", int),
    "gpus": ("gpus_per_node", int),
    "mem": ("mem_gb", float),
    "parallel": ("slurm_array_parallelism", int),
    "account": ("slurm_account", str),
    "qos": ("slurm_qos", str),
    "constraint": ("slurm_constraint", str),
}
# How often the cluster may end a job at its time limit before it is no longer queued again.
MAX_TIMEOUTS = 100
GRACE_SECONDS = 20.0  # below Slurm's KillWait of 30
POLL_SECONDS = 5.0  # between two looks at the queue


class Job:
    """What a Slurm job runs; submitit pickles it."""

    def __call__(self, plan: str, workdir: str, keys: Sequence[str], lanes: int) -> dict[str, str]:
        """Trains points; returns their statuses."""
        # submitit's own handler, which queues the job again. Before it, the train loop handles the
        # signal and saves.
        requeue: Any = signal.getsignal(signal.SIGUSR2)
        machine.join(Path(workdir))
        runtime.prepare_compiler()
        planned = [p for p in points_lib.read_plan(Path(plan)) if p.key in keys]
        try:
            runner.work(planned, Path(workdir), lanes=lanes)
        except Interrupted as interrupted:
            if interrupted.signum == signal.SIGUSR2 and callable(requeue):
                requeue(signal.SIGUSR2, None)
            # Preemption sends SIGTERM first, and SIGUSR2 after it, for which submitit's handler is
            # in place again. A job that the user has cancelled gets no second signal.
            time.sleep(GRACE_SECONDS)
            raise
        return runner.statuses(planned, Path(workdir))

    def checkpoint(self, plan: str, workdir: str, keys: Sequence[str], lanes: int) -> Any:
        """What submitit queues again: the same, which continues from the checkpoints."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, plan, workdir, keys, lanes)


def parse(settings: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` words as submitit's parameters.

    Raises:
      ConfigError: an unknown key or a value of another type.
    """
    parsed: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if key not in SETTINGS or not equals:
            raise ConfigError(
                f"--slurm has {text!r}; give KEY=VALUE with one of {', '.join(SETTINGS)}."
            )
        name, kind = SETTINGS[key]
        try:
            parsed[name] = settings_lib.parse(key, settings_lib.Kind(kind), value)
        except ValueError as error:
            raise ConfigError(
                f"--slurm has {text!r}; {key} must be a number, such as {key}=4."
            ) from error
    return parsed


def run(
    points: Sequence[Point],
    workdir: Path,
    *,
    settings: Mapping[str, Any],
    lanes: int = 1,
    threads: int | None = None,
    retry_failed: bool = False,
    wait: bool = True,
    progress: bool = True,
) -> runner.Outcome:
    """Submits every point that is not done and that no job has, and waits for all jobs.

    Args:
      points: of the sweep.
      workdir: of the sweep, on a file system that the nodes share.
      settings: of `parse`.
      lanes: points of one shape that one job trains together.
      threads: of a sweep that begins here; None is the number of cores that `settings` give a job,
        or that of this machine.
      retry_failed: submit points again that failed before.
      wait: until no job of these points is queued or running. Ending this process ends no job.
      progress: show the progress on stderr.

    Raises:
      ConfigError: submitit or Slurm is not there, or points cannot train (`runner.check`).
      DatasetError, RunDirectoryError: as `runner.run`.
    """
    try:
        import submitit
    except ImportError as error:
        raise ConfigError(
            "--launcher=slurm needs submitit; `pip install -e '.[sweep]'` in the checkout brings "
            "it."
        ) from error
    queued = _queue()
    runner.check(points, workdir, build.Shared(), lanes=lanes, retry_failed=retry_failed)
    runner.register(points, workdir, retry_failed=retry_failed)
    machine.begin(workdir, threads or settings.get("cpus_per_task"))
    waiting = [p for p in points if _job_of(p, workdir) in queued]
    statuses = runner.statuses(points, workdir)
    open_points = [p for p in points if p not in waiting and statuses[p.key] in runner.OPEN]
    if open_points:
        plan = points_lib.write_plan(points, workdir)
        executor = submitit.AutoExecutor(
            folder=workdir / "slurm", cluster="slurm", slurm_max_num_timeout=MAX_TIMEOUTS
        )
        executor.update_parameters(name="mobilenet", **settings)
        chunks = lanes_lib.chunks(open_points, workdir, lanes)
        job = Job()
        with executor.batch():
            jobs = [
                executor.submit(
                    job, str(plan.absolute()), str(workdir.absolute()), [p.key for p in c], lanes
                )
                for c in chunks
            ]
        for submitted, chunk in zip(jobs, chunks, strict=True):
            for point in chunk:
                rundir.write_json(
                    point.directory(workdir) / "slurm.json", {"job": submitted.job_id}
                )
    if wait:
        with Progress(points, workdir, show=progress):
            while any(_job_of(point, workdir) in queued for point in points) or open_points:
                open_points = []
                time.sleep(POLL_SECONDS)
                queued = _queue()
    return runner.Outcome(runner.statuses(points, workdir))


def _job_of(point: Point, workdir: Path) -> str | None:
    """The job that the point was last given to."""
    with contextlib.suppress(ValueError):
        found = rundir.read_json(point.directory(workdir) / "slurm.json", dict)
        return found.get("job") if found else None
    return None


def _queue() -> set[str]:
    """Jobs that are queued or running, arrays job by job.

    Raises:
      ConfigError: Slurm does not answer.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        raise ConfigError(
            f"--launcher=slurm: squeue does not answer ({str(reason).strip()}); run it where jobs "
            "can be submitted."
        ) from error
    return set(found.stdout.split())
