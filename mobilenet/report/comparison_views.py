"""Compared networks as a figure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from mobilenet.analysis import plots
from mobilenet.report import networks

Row = Mapping[str, str]


def finished(rows: Iterable[Row]) -> list[Row]:
    """The rows that have an accuracy."""
    return [row for row in rows if row["top1_mean"]]


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
