"""Points as text: what a sweep would do, and what it has done."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mobilenet import architecture, build, rundir
from mobilenet.models import cost
from mobilenet.sweep import runner
from mobilenet.sweep.points import Point
from mobilenet.sweep.progress import failure
from mobilenet.terminal import printable

WIDTH = 100  # columns of a table that goes to a file


def _render(table: Table) -> str:
    console = Console(width=None if Console().is_terminal else WIDTH, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()


def table(points: Sequence[Point], workdir: Path) -> str:
    """Every point with its cost and status, and totals: for `--dry_run`.

    Args:
      points: of the sweep.
      workdir: of the sweep.

    Raises:
      ConfigError, DatasetError: the data cannot be opened; it tells classes and steps.
      RunDirectoryError: the directory cannot be read.
    """
    shown = Table(box=None, padding=(0, 1), show_edge=False)
    shown.add_column("key", no_wrap=True)
    shown.add_column("point")
    for name in ("params", "MMACs", "steps", "status"):
        shown.add_column(name, justify="right", no_wrap=True)
    shared = build.Shared()
    total_steps, shapes = 0, set()
    statuses = runner.statuses(points, workdir)
    for point in points:
        dataset, _ = shared.open(point.config)
        classes = build.resolve_classes(point.config, dataset.num_classes)
        costs = cost.totals(architecture.layer_costs(point.config, classes))
        _, steps = build.count_steps(point.config, len(dataset.splits["train"]))
        status = statuses[point.key]
        total_steps += 0 if status in rundir.FINAL else steps
        shapes.add(build.lane_key(point.config))
        shown.add_row(
            point.key[:8], Text(printable(point.label)), f"{costs.params:,}",
            f"{costs.macs / 1e6:,.1f}", f"{steps:,}", status,
        )  # fmt: skip
    done = sum(status == "done" for status in statuses.values())
    return (
        f"{_render(shown)}\n\n{len(points)} points of {len(shapes)} shapes, {done} done; "
        f"{total_steps:,} steps to train."
    )


def summary(points: Sequence[Point], statuses: Mapping[str, str], workdir: Path) -> str:
    """What a sweep has come to: counts, why points failed, and what to do about it."""
    counts = {s: sum(v == s for v in statuses.values()) for s in rundir.STATUSES}
    lines = [f"{len(points)} points: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n)]
    for point in points:
        status = statuses[point.key]
        if status in ("failed", "diverged", "damaged"):
            directory = point.directory(workdir)
            why = printable(f"{point.label}: {failure(directory)}")
            lines.append(f"  {status}: {why} ({directory}/log.txt)")
    if counts["failed"]:
        lines.append("Start again with --retry_failed when the cause is gone.")
    if counts["damaged"]:
        lines.append("Restore or delete the damaged files, and start again: the rest is kept.")
    if counts["running"]:
        lines.append(
            "Points that are running belong to another sweep in this directory; start again when "
            "it has ended."
        )
    lines.append(f"sweep directory: {workdir}")
    return "\n".join(lines)
