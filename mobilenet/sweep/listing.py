"""Sweeps as text: what one would do, and what it has done."""

import dataclasses
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mobilenet import architecture, build, rundir
from mobilenet.analysis import stats
from mobilenet.models import cost
from mobilenet.sweep import runner
from mobilenet.sweep.points import Point
from mobilenet.sweep.progress import failure
from mobilenet.terminal import counted, printable

WIDTH = 80  # columns of a table that goes to a file
BROKEN = ("failed", "diverged", "damaged")  # statuses whose cause is shown


def _columns() -> int | None:
    """The width of tables: None is the terminal's own."""
    return None if Console().is_terminal else WIDTH


def _render(table: Table) -> str:
    console = Console(width=_columns(), color_system=None)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def _fold(lines: Iterable[str]) -> str:
    """Lines that fit the terminal; elsewhere they stay whole, so that programs find them."""
    if not Console().is_terminal:
        return "\n".join(lines)
    width = Console().width
    return "\n".join(
        textwrap.fill(
            line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        )
        for line in lines
    )


def _table() -> Table:
    return Table(box=None, padding=(0, 1), pad_edge=False, show_edge=False, header_style="")


def _by_variant(points: Sequence[Point]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.variant, []).append(point)
    return found


def _state(statuses: Sequence[str]) -> str:
    """How far the runs of a variant are: "2/3", and what is wrong with others."""
    others = [s for s in rundir.STATUSES if s not in ("done", "pending") and s in statuses]
    return "\n".join(
        [
            f"{statuses.count('done')}/{len(statuses)}",
            *(f"{statuses.count(status)} {status}" for status in others),
        ]
    )


# ------------------------------------------------------------------------------ before a sweep


def table(points: Sequence[Point], workdir: Path, said: str = "") -> str:
    """Every variant with its runs and their cost, and totals: for `--dry_run`.

    Args:
      points: of the sweep.
      workdir: of the sweep.
      said: what the experiment file says about its cost; "" for nothing.

    Raises:
      ConfigError, DatasetError: the data cannot be opened; it tells classes and steps.
      RunDirectoryError: the directory cannot be read.
    """
    shown = _table()
    shown.add_column("variant", overflow="fold")
    for name in ("done", "params", "M MACs", "steps a run"):
        shown.add_column(name, justify="right", no_wrap=True)
    shared = build.Shared()
    statuses = runner.statuses(points, workdir)
    sizes = {point.key: _size(point, shared) for point in points}
    for name, mine in _by_variant(points).items():
        size = sizes[mine[0].key]
        shown.add_row(
            Text(printable(name)), _state([statuses[point.key] for point in mine]),
            f"{size.params:,}", f"{size.macs / 1e6:,.1f}", f"{size.steps:,}",
        )  # fmt: skip
    left = [point for point in points if statuses[point.key] not in rundir.FINAL]
    done = [point for point in points if statuses[point.key] == "done"]
    shapes = {build.lane_key(point.config) for point in points}
    lines = [
        f"{counted(len(points), 'run')} of {counted(len(_by_variant(points)), 'variant')}: "
        f"{len(done)} done, {counted(sum(sizes[p.key].steps for p in left), 'step')} to train; "
        f"{counted(len(shapes), 'shape')} to compile.",
        *_estimate(left, done, sizes, workdir, said),
    ]
    return f"{_render(shown)}\n\n{_fold(lines)}"


@dataclasses.dataclass(frozen=True)
class _Size:
    """What a run costs: its network, its steps, and multiply-adds of images over all steps."""

    params: int
    macs: int
    steps: int
    work: float


def _size(point: Point, shared: build.Shared) -> _Size:
    dataset, _ = shared.open(point.config)
    classes = build.resolve_classes(point.config, dataset.num_classes)
    totals = cost.totals(architecture.layer_costs(point.config, classes))
    _, steps = build.count_steps(point.config, len(dataset.splits["train"]))
    work = float(totals.macs) * steps * point.config.train.global_batch_size
    return _Size(totals.params, totals.macs, steps, work)


def _estimate(
    left: Sequence[Point],
    done: Sequence[Point],
    sizes: Mapping[str, _Size],
    workdir: Path,
    said: str,
) -> list[str]:
    """The time of the runs that are left, from finished runs or the experiment file."""
    if not left:
        return []
    seconds = {point.key: _seconds(point.directory(workdir)) for point in done}
    trained = [p for p in done if seconds[p.key] and sizes[p.key].work]
    if trained:
        rate = sum(seconds[p.key] for p in trained) / sum(sizes[p.key].work for p in trained)
        rest = sum(rate * sizes[p.key].work for p in left)
        return [
            f"About {duration(rest)} for the rest, one run after the other, as the "
            f"{counted(len(trained), 'run')} here took."
        ]
    return [f"Cost, from the experiment file: {said}."] if said else []


def _seconds(directory: Path) -> float:
    """Wall time of a finished run in seconds; 0 without one."""
    found = _summary(directory).get("wall_seconds")
    return float(found) if isinstance(found, int | float) else 0.0


def duration(seconds: float) -> str:
    """A time in words of two digits: 45 s, 12 min, 3.5 h, 2.1 days."""
    for unit, size in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size or (size < 86_400 and seconds >= 1.5 * size):
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return f"{seconds:.0f} s"


# ------------------------------------------------------------------------------- after a sweep

SPLITS = ("validation", "test")


def results(points: Sequence[Point], statuses: Mapping[str, str], workdir: Path) -> str:
    """Every variant with its accuracy over seeds: what a sweep ends with.

    Args:
      points: of the sweep.
      statuses: of each point's key.
      workdir: of the sweep.

    Returns:
      A table: variant, runs done of those planned, mean top-1 in percent with the 95 % t-interval
      over seeds, mean wall time. A split that no run has measured has no column.
    """
    summaries = {
        point.key: _summary(point.directory(workdir))
        for point in points
        if statuses[point.key] == "done"
    }
    splits = [s for s in SPLITS if any(_top1(found, s) is not None for found in summaries.values())]
    shown = _table()
    shown.add_column("variant\n", overflow="fold")
    shown.add_column("runs\ndone", justify="right", no_wrap=True)
    for split in splits:
        shown.add_column(f"{split} top-1,\n% [95 % t]", justify="right", no_wrap=True)
    shown.add_column("time\na run", justify="right", no_wrap=True)
    for name, mine in _by_variant(points).items():
        found = [summaries[point.key] for point in mine if point.key in summaries]
        times = [each["wall_seconds"] for each in found if each.get("wall_seconds") is not None]
        shown.add_row(
            Text(printable(name)),
            _state([statuses[point.key] for point in mine]),
            *(_accuracy([_top1(each, split) for each in found]) for split in splits),
            duration(sum(times) / len(times)) if times else "-",
        )
    return _render(shown)


def _summary(directory: Path) -> dict[str, Any]:
    try:
        return rundir.read_json(directory / "summary.json", dict) or {}
    except rundir.FileError:
        return {}


def _top1(summary: Mapping[str, Any], split: str) -> float | None:
    found = summary.get(split)
    value = found.get("top1") if isinstance(found, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def _accuracy(top1: Sequence[float | None]) -> str:
    """Mean and interval in percent; one run has no interval."""
    values = [100 * value for value in top1 if value is not None]
    if not values:
        return "-"
    found = stats.mean_interval(values, within=stats.PERCENT)
    if found.n == 1:
        return f"{found.mean:.2f}"
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


def summary(points: Sequence[Point], statuses: Mapping[str, str], workdir: Path) -> str:
    """The state of a sweep: counts, why runs failed, and what to do about it."""
    counts = {s: sum(v == s for v in statuses.values()) for s in rundir.STATUSES}
    lines = [
        f"{counted(len(points), 'run')}: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n)
    ]
    for point in points:
        status = statuses[point.key]
        if status in BROKEN:
            directory = point.directory(workdir)
            why = printable(f"{point.label}: {failure(directory)}")
            lines.append(f"  {status}: {why} ({directory}/log.txt)")
    if counts["failed"]:
        lines.append("Start again with --retry_failed when the cause is gone.")
    if counts["damaged"]:
        lines.append("Restore or delete the damaged files, and start again: the rest is kept.")
    if counts["running"]:
        lines.append(
            "Runs that are running belong to another sweep in this directory; start again when "
            "it has ended."
        )
    lines.append(f"sweep directory: {workdir}")
    return _fold(lines)
