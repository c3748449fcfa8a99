"""Compared networks as a table for a terminal, and as a figure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

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
            f"speed: evaluation, one picture and a batch; median ± the farthest of rounds "
            f"({several('rounds')}); on {several('speed_device')}, {several('speed_processor')}"
        )
        lines.append("peak: memory for that batch, on an accelerator with the parameters")
    return [*lines, *notes]


# ---------------------------------------------------------------------------------------- plot

PANELS = (
    ("macs", *plots.COSTS["macs"]),
    ("latency_ms", "latency of one picture, ms", 1.0),
)
# Where a label may stand around its point: points (1/72 inch) and alignments, the best first.
PLACES = (
    *((6, 5, "left", "bottom"), (6, -5, "left", "top")),
    *((-6, 5, "right", "bottom"), (-6, -5, "right", "top")),
    *((6, 16, "left", "bottom"), (6, -16, "left", "top")),
    *((-6, 16, "right", "bottom"), (-6, -16, "right", "top")),
)


def plot(rows: Sequence[Row]) -> Figure:
    """Accuracy against multiply-adds, and against latency where it was measured.

    Args:
      rows: of a `Comparison`; those without a finished run are left out.

    Returns:
      The figure. A family has one colour and marker; bars are 95 % intervals over seeds, and the
      fastest and slowest round of the latency. One seed has no interval and no bar.
    """
    rows = finished(rows)
    panels = [panel for panel in PANELS if any(row[panel[0]] for row in rows)]
    figure = Figure(figsize=(0.8 + 4.6 * len(panels), 4.0), layout="constrained")
    axes = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
    families = dict.fromkeys(_family(row) for row in rows)
    colours = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, len(families)))
    for axis, (field, label, scale) in zip(axes, panels, strict=True):
        shown = [row for row in rows if row[field]]
        for family, colour, marker in zip(families, colours, plots.MARKERS, strict=False):
            mine = [row for row in shown if _family(row) == family]
            xs = [scale * float(row[field]) for row in mine]
            ys = [float(row["top1_mean"]) for row in mine]
            axis.errorbar(
                xs,
                ys,
                _lengths(mine, ys, "low", "high"),
                _lengths(mine, xs, f"{field}_low", f"{field}_high"),
                color=colour,
                marker=marker,
                markersize=5,
                capsize=2,
                elinewidth=1,
                linestyle="none",
                label=family,
            )
        plots.log_axis(axis, [scale * float(row[field]) for row in shown])
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(0.12)
    axes[0].set_ylabel(f"test {plots.TOP1}")
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    figure.draw_without_rendering()  # places are chosen where the layout puts the points
    for axis, (field, _, scale) in zip(axes, panels, strict=True):
        _name_points(axis, [row for row in rows if row[field]], field, scale)
    return figure


def _family(row: Row) -> str:
    return networks.NAMES.get(row["model"], (row["model"], ""))[0]


def _lengths(rows: Sequence[Row], middles: Sequence[float], low: str, high: str) -> Any:
    """Lengths of error bars [2, n], NaN where a row has none; None for values without bars."""
    if not rows or low not in rows[0]:
        return None
    return [
        [abs(float(row[end] or "nan") - middle) for row, middle in zip(rows, middles, strict=True)]
        for end in (low, high)
    ]


def _name_points(axes: Axes, rows: Sequence[Row], field: str, scale: float) -> None:
    """Labels each point where its text covers the least of other texts, points and bars."""
    figure: Any = axes.figure
    margin = 4 * figure.dpi / 72  # half of a marker, in pixels

    def boxes(row: Row) -> list[tuple[float, ...]]:
        """A point and its bars, in pixels."""
        x, y = scale * float(row[field]), float(row["top1_mean"])
        ends = [(x, float(row[end] or y)) for end in ("low", "high")]
        ends += [(scale * float(row.get(f"{field}_{end}") or x), y) for end in ("low", "high")]
        (left, bottom), *_ = axes.transData.transform([(x, y)]) - margin
        found = [(left, bottom, left + 2 * margin, bottom + 2 * margin)]
        for one, other in (ends[:2], ends[2:]):
            low, high = axes.transData.transform([one, other])
            found.append((low[0] - 1, low[1] - 1, high[0] + 1, high[1] + 1))
        return found

    taken = [box for row in rows for box in boxes(row)]
    for row in rows:
        family = _family(row)
        label = row["network"].removeprefix(family).strip(" -").replace(" ", ", ", 1) or family
        choices = []
        for right, up, across, along in PLACES:
            annotation = axes.annotate(
                label,
                (scale * float(row[field]), float(row["top1_mean"])),
                xytext=(right, up),
                textcoords="offset points",
                ha=across,
                va=along,
                fontsize=8,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )
            annotation.set_in_layout(False)
            box = annotation.get_window_extent().extents
            outside = _overlap(box, box) - _overlap(box, axes.bbox.extents)
            covered = sum(_overlap(box, other) for other in taken)
            choices.append((covered + outside, annotation, box))
        best = min(choices, key=lambda choice: choice[0])
        taken.append(best[2])
        for choice in choices:
            if choice is not best:
                choice[1].remove()


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """The area that two boxes (left, bottom, right, top) share."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, wide) * max(0.0, high)
