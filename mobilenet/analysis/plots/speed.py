"""Times of training and evaluation steps, and their ratios to those of other implementations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from mobilenet.analysis.plots import forest, style

Row = Mapping[str, Any]


@style.styled
def steps(rows: Sequence[Row], names: Mapping[str, str]) -> Figure:
    """Time of a training step against the batch and against MACs, and ratios to the peers.

    Bars are the fastest and the slowest of the rounds. Axes are logarithmic, so that a round that
    was disturbed does not hide the others.

    Args:
      rows: of a benchmark, those of this project named "ours"; of several machines, those of the
        first one's are drawn.
      names: implementation -> what it is called in the figure, in the order of the ratios.
    """
    rows = [row for row in rows if row["processor"] == rows[0]["processor"]]
    curves = [(points, label) for points, label in _curves(rows) if len(points) > 1]
    peers = [
        row
        for name in names
        for row in rows
        if row["implementation"] == name != "ours" and row["work"] not in ("block", "input")
    ]
    places, headings = forest.arrange([names[r["implementation"]] for r in peers], len(peers))
    heights = [2.1] if curves else []
    heights += [0.7 + 0.17 * (len(peers) + len(headings))] if peers else []
    title = f"Time per step of MobileNetV2, {rows[0]['processor']}" if rows else ""
    figure = style.new(style.PAGE, sum(heights) + 0.3, title)
    if not heights:
        return figure
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    panels: list[Axes] = []
    if curves:
        panels += list(parts[0].subplots(1, len(curves), squeeze=False)[0])
        for axes, (points, label) in zip(panels, curves, strict=True):
            _draw_curve(axes, points, label)
    if peers:
        panels.append(parts[-1].subplots())
        _draw_ratios(panels[-1], peers, places, headings)
    style.letter(panels)
    return figure


def _curves(rows: Sequence[Row]) -> list[tuple[dict[float, Row], str]]:
    """(what is on the axis -> its row, axis label): of training steps at 224 pixels."""
    train = [
        row
        for row in rows
        if (row["work"], row["implementation"], row["memory"]) == ("train", "ours", "kept")
        and int(row["image_size"]) == 224
    ]
    plain = [row for row in train if row["model"] == "1.0"]
    widths = [row for row in train if int(row["batch_size"]) == 16 and "SE" not in row["model"]]
    return [
        (_points(plain, "batch_size", 1.0), "batch size (width 1.0, 224 px)"),
        (_points(widths, "macs", 1e-6), "multiply-adds per image, millions (batch 16)"),
    ]


def _points(rows: Sequence[Row], key: str, scale: float) -> dict[float, Row]:
    """One row for each shape: the first case that measured it."""
    points: dict[float, Row] = {}
    for row in rows:
        points.setdefault(scale * float(row[key]), row)
    return points


def _draw_curve(axes: Axes, points: Mapping[float, Row], label: str) -> None:
    """Seconds of a training step, with their range, and what proportional ones would be."""
    style.finish(axes)
    xs = sorted(points)
    middle, low, high = (
        np.array([float(points[x][key]) for x in xs])
        for key in ("seconds", "seconds_low", "seconds_high")
    )
    colour = style.PALETTE[0]
    axes.plot(xs, middle, color=colour, zorder=2)
    axes.errorbar(
        xs, middle, (middle - low, high - middle), **style.points(colour), label="median, range"
    )
    axes.plot(
        xs, middle[-2] * np.array(xs) / xs[-2], "--", color=style.GREY, linewidth=0.8,
        label="proportional", zorder=1,
    )  # fmt: skip
    style.log_axis(axes, xs)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel=label, ylabel="training step, s")
    axes.legend(loc="upper left")


def _draw_ratios(
    axes: Axes, rows: Sequence[Row], places: np.ndarray, headings: Sequence[tuple[int, str]]
) -> None:
    """Times of other implementations over ours, in groups, with their ranges as bars and texts."""
    style.finish(axes)
    middle, low, high = (
        np.array([float(row[key]) for row in rows]) for key in ("ratio", "ratio_low", "ratio_high")
    )
    axes.errorbar(
        middle, places, xerr=(middle - low, high - middle), **style.points(style.PALETTE[0])
    )
    axes.axvline(1, color="0.2", linewidth=0.8, zorder=1)
    forest.name_rows(axes, [_shape(row) for row in rows], places, headings)
    values = zip(middle, low, high, strict=True)
    texts = [forest.with_range(*value, "{:.2f}") for value in values]
    forest.write_values(axes, places, texts, "ratio [range]")
    style.log_axis(axes, [*low, *high])
    axes.set_xlabel("time of a step / time of the same step of this project")


def _shape(row: Row) -> str:
    work = {"train": "training", "evaluate": "evaluation"}.get(row["work"], row["work"])
    return f"{work}, {row['image_size']} px, width {row['model']}, batch {row['batch_size']}"
