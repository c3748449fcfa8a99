"""Compared networks as tables of 80 columns, with each variant's difference to its baseline."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mobilenet import rundir
from mobilenet.analysis import stats
from mobilenet.analysis.stats import Interval
from mobilenet.report import results
from mobilenet.report.results import ResultError
from mobilenet.sweep import ledger
from mobilenet.terminal import printable

WIDTH = 80  # columns
Row = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far a variant is from its baseline.

    Attributes:
      baseline: name of the baseline.
      interval: points of test top-1 (in percent) above it, paired by seed.
    """

    baseline: str
    interval: Interval


def names(directory: Path) -> dict[str, str]:
    """Group of runs -> name of the variant, as the sweeps in a directory have written them.

    Raises:
      ResultError: the file of names is damaged.
    """
    return {group: variant.name for group, variant in _variants(directory).items()}


def _variants(directory: Path) -> dict[str, ledger.Variant]:
    try:
        return ledger.read(directory)
    except rundir.RunDirectoryError as error:
        raise ResultError(str(error)) from error


def differences(
    directory: Path, rows: Iterable[Row], runs: Mapping[str, Sequence[str]]
) -> dict[str, Difference]:
    """The `run` of a row -> its difference to its baseline, where the sweep names one.

    Args:
      directory: of the sweep.
      rows: of `comparison.load`.
      runs: the `run` of a row -> all of its runs, relative to the directory.

    Raises:
      ResultError: the file of names is damaged.
    """
    variants = _variants(directory)
    by_group = {_group(directory / row["run"]): row for row in rows if row["top1_mean"]}
    found = {}
    for group, row in by_group.items():
        variant = variants.get(group)
        other = by_group.get(variant.baseline) if variant else None
        if other is None:
            continue
        mine, theirs = (top1(directory, runs[each["run"]]) for each in (row, other))
        if mine.keys() & theirs.keys():
            interval = stats.paired_difference(mine, theirs, within=stats.POINTS)
            found[row["run"]] = Difference(other["network"], interval)
    return found


def _group(run: Path) -> str:
    """The group of a sweep's run; "" for a run of no sweep."""
    try:
        return str((rundir.read_json(run / "point.json", dict) or {}).get("group", ""))
    except rundir.RunDirectoryError:
        return ""


def top1(directory: Path, runs: Iterable[str]) -> dict[int, float]:
    """Seed -> test top-1 in percent, of the finished runs."""
    found = {}
    for run in runs:
        if rundir.status(directory / run) == "done":
            summary = results.read_summary(directory / run, ["seed", "test.top1"])
            found[summary["seed"]] = 100 * summary["test"]["top1"]
    return found


# --------------------------------------------------------------------------------------- tables


def text(
    rows: Sequence[Row], notes: Sequence[str] = (), apart: Mapping[str, Difference] | None = None
) -> str:
    """Rows as a table of accuracies and one of costs, and below what holds for all of them.

    Args:
      rows: of a `comparison.Comparison`.
      notes: sentences that follow.
      apart: of `differences`.
    """
    console = Console(width=WIDTH, color_system=None)
    with console.capture() as captured:
        console.print(_accuracies(rows, apart or {}))
        console.print()
        console.print(_costs(rows))
        console.print()
        for line in (*_footnotes(rows, bool(apart)), *notes):
            console.print(line, highlight=False, markup=False, soft_wrap=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _table(*heads: str) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, show_edge=False, header_style="")
    table.add_column("variant\n", overflow="fold", ratio=1)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _accuracies(rows: Sequence[Row], apart: Mapping[str, Difference]) -> Table:
    table = _table("n\n", "test top-1,\n% [95 % t]")
    if apart:
        table.add_column("difference,\npoints [95 % t]", justify="right", no_wrap=True)
        table.add_column("to\n", overflow="fold", ratio=1)
    for row in rows:
        cells = [str(len(row["seeds"].split())), _accuracy(row)]
        if apart:
            difference = apart.get(row["run"])
            cells += [_points(difference.interval), difference.baseline] if difference else ["", ""]
        table.add_row(Text(printable(row["network"])), *map(Text, map(printable, cells)))
    return table


def _accuracy(row: Row) -> str:
    if not row["top1_mean"]:
        return "-"
    return row["top1_mean"] + (f" [{row['low']}, {row['high']}]" if row["low"] else "")


def _points(found: Interval) -> str:
    ends = f" [{found.low:+.2f}, {found.high:+.2f}]" if found.n > 1 else ""
    return f"{found.mean:+.2f}{ends}"


def _costs(rows: Sequence[Row]) -> Table:
    """Size and training time; memory and speed where they were measured."""
    measured = any(row["latency_ms"] for row in rows)
    sizes = "/".join(dict.fromkeys(row["batch_size"] for row in rows if row["batch_size"]))
    speed = ("peak\nMB", "latency\nms", f"images/s\nat {sizes}") if measured else ()
    table = _table("params\nM", "MACs\nM", *speed, "time\na run")
    for row in rows:
        done = bool(row["top1_mean"])
        cells = [digits(int(row[field]) / 1e6) if done else "-" for field in ("params", "macs")]
        if measured:
            cells += [row["peak_mb"] or "-", *(_spread(row, f) for f in SPEEDS)]
        cells.append(results.duration(float(row["seconds_mean"])) if done else "-")
        table.add_row(Text(printable(row["network"])), *cells)
    return table


SPEEDS = ("latency_ms", "images_per_second")


def _spread(row: Row, field: str) -> str:
    """A median, and how far the farthest round is from it, in percent."""
    if not row[field]:
        return "-"
    middle, low, high = (float(row[f"{field}{end}"]) for end in ("", "_low", "_high"))
    if row["rounds"] == "1":
        return digits(middle)
    return f"{digits(middle)} ±{100 * max(middle - low, high - middle) / middle:.0f}%"


def digits(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def _footnotes(rows: Sequence[Row], apart: bool) -> list[str]:
    done = [row for row in rows if row["top1_mean"]]

    def several(field: str, of: Iterable[Any] = done) -> str:
        return "; ".join(dict.fromkeys(row[field] for row in of if row[field]))

    lines = [
        f"top-1: {several('data')}, split {several('split')}; mean over n seeds and 95 % "
        "t-interval",
        f"trained on {several('device')}, {several('processor')}; time: wall time, mean over seeds",
    ]
    if apart:
        lines.insert(1, "difference: to the baseline in the last column, paired by seed")
    lanes = [row for row in done if row["lanes"]]
    if lanes:
        shown = ", ".join(row["network"] for row in lanes)
        lines.append(
            f"trained as lanes, which share their time, {several('lanes', lanes)} at once: {shown}"
        )
    if several("latency_ms"):
        lines.append(
            "speed: evaluation of one image and of a batch; median ± the farthest of "
            f"{several('rounds')} rounds; on {several('speed_device')}, "
            f"{several('speed_processor')}"
        )
        lines.append("peak: memory for that batch, on an accelerator with the parameters")
    return lines
