"""Compared networks as a table for a terminal, and as a figure."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from mobilenet.analysis import plots
from mobilenet.report import networks, results
from mobilenet.terminal import printable

Row = Mapping[str, str]
WIDTH = 100  # columns of a terminal


def finished(rows: Iterable[Row]) -> list[Row]:
    """The rows that have an accuracy."""
    return [row for row in rows if row["top1_mean"]]


COUNTS = ("params", "macs", "bytes")


def text(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """Rows as a table of at most WIDTH columns, and below it what holds for all of them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1), pad_edge=False, show_edge=False, header_style="")
    sizes = "/".join(dict.fromkeys(row["batch_size"] for row in rows if row["batch_size"]))
    table.add_column("network\n")
    for head in (
        *("top-1\n%", "n\n", "params\nM", "MACs\nM", "size\nMB", "peak\nMB"),
        *("latency\nms", f"images/s\nat {sizes or '-'}", "time\na run"),
    ):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        done = bool(row["top1_mean"])
        table.add_row(
            Text(printable(row["network"])),
            _accuracy(row) if done else "-",
            str(len(row["seeds"].split())),
            *(digits(int(row[field]) / 1e6) if done else "-" for field in COUNTS),
            row["peak_mb"] or "-",
            _spread(row, "latency_ms"),
            _spread(row, "images_per_second"),
            results.duration(float(row["seconds_mean"])) if done else "-",
        )
    console = Console(width=WIDTH, color_system=None)
    with console.capture() as captured:
        console.print(table)
        for line in _footnotes(rows, notes):
            console.print(line, highlight=False, markup=False, soft_wrap=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _accuracy(row: Row) -> str:
    """The mean, and half of the interval, which is symmetric."""
    if not row["low"]:
        return row["top1_mean"]
    return f"{row['top1_mean']} ±{(float(row['high']) - float(row['low'])) / 2:.2f}"


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


def _footnotes(rows: Sequence[Row], notes: Sequence[str]) -> list[str]:
    done = finished(rows)

    def several(field: str, of: Iterable[Row] = done) -> str:
        return "; ".join(dict.fromkeys(row[field] for row in of if row[field]))

    lines = [
        "",
        f"top-1: {several('data')}, split {several('split')}; mean over n seeds ± half of the "
        "95 % t-interval",
        f"trained on {several('device')}, {several('processor')}; wall time, mean over seeds",
        "size: the parameters as float32",
    ]
    lanes = [row for row in done if row["lanes"]]
    if lanes:
        names = ", ".join(row["network"] for row in lanes)
        lines.append(
            f"trained as lanes, which share their time, {several('lanes', lanes)} at once: {names}"
        )
    if several("latency_ms"):
        lines.append(
            f"speed: evaluation, one image and a batch; median ± the farthest of rounds "
            f"({several('rounds')}); on {several('speed_device')}, {several('speed_processor')}"
        )
        lines.append("peak: memory for that batch, on an accelerator with the parameters")
    return [*lines, *notes]


# ---------------------------------------------------------------------------------------- plot

PANELS = ("macs", "latency_ms")


def plot(rows: Sequence[Row]) -> Figure:
    """Accuracy against multiply-adds, and against latency where it was measured.

    Args:
      rows: of a `Comparison`; those without a finished run are left out.

    Returns:
      The figure. A family has one colour and marker; bars are 95 % intervals over seeds, and the
      fastest and slowest round of the latency. One seed has no interval and no bar.
    """
    rows = finished(rows)
    panels = [field for field in PANELS if any(row[field] for row in rows)]
    columns = [*panels, "latency_ms_low", "latency_ms_high"]
    table = pd.DataFrame(
        {
            "kind": family,
            "label": row["network"].removeprefix(family).strip(" -").replace(" ", ", ", 1)
            or family,
            **{name: _number(row[name]) for name in columns if name in row},
            "mean": float(row["top1_mean"]) / 100,
            "low": _number(row["low"]) / 100,
            "high": _number(row["high"]) / 100,
        }
        for row in rows
        for family in (_family(row),)
    )
    data = dict.fromkeys(plots.data_set(row["data"]) for row in rows)
    title = f"Networks trained by one recipe, {', '.join(data)}"
    return plots.budgets(table, panels, named=panels, title=title)


def _number(text: str) -> float:
    return float(text or "nan")


def _family(row: Row) -> str:
    return networks.NAMES.get(row["model"], (row["model"], ""))[0]
