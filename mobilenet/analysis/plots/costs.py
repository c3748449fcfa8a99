"""Accuracy against what a network costs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mobilenet.analysis import stats
from mobilenet.analysis.plots import labels, style
from mobilenet.analysis.stats import Frame


@style.styled
def pareto(
    summary: Frame,
    cost: str,
    *,
    label: str,
    published: Frame | None = None,
    names: tuple[str, str] = ("ours", "published"),
    title: str = "",
) -> Figure:
    """Accuracy against a cost, with the front of what nothing else dominates.

    Args:
      summary: of `stats.summarize`, with the columns `cost`, `label`, mean, low and high
        (fractions); low and high are NaN for a single seed, which is drawn without a bar.
      cost: column of the cost, positive, drawn on a log axis; its label and unit are from COSTS, or
        the column's name.
      label: column whose value is written at each point.
      published: points of others, with the columns `cost` and mean (a fraction), in hollow grey;
        with `label` too they are named.
      names: of both in the legend, for points that are neither our runs nor what they are compared
        with.
      title: of the figure: what was measured on which data.

    Returns:
      The figure. The front is a line through the points of `summary` alone.

    Raises:
      ValueError: a column that is missing, or a cost or mean that is missing or not positive.
    """
    stats.require(summary, [cost, label, "mean", "low", "high"])
    _check_drawable(summary, cost)
    name, scale = style.COSTS.get(cost, (cost, 1.0))
    figure, axes = style.new_axes(5.4, 3.1, title)
    colour = style.PALETTE[0]
    front = summary[stats.pareto(summary, cost, "mean")].sort_values(cost)
    axes.plot(
        scale * front[cost],
        100 * front["mean"],
        color=style.PALETTE[4],
        label=f"front of {names[0]}",
        zorder=1,
    )
    axes.errorbar(
        scale * summary[cost],
        100 * summary["mean"],
        style.percent_bars(summary),
        **style.points(colour),
        label=names[0],
    )
    named = [(summary, colour)]
    costs = [scale * summary[cost]]
    if published is not None:
        stats.require(published, [cost, "mean"])
        _check_drawable(published, cost)
        axes.plot(
            scale * published[cost],
            100 * published["mean"],
            **style.hollow(style.GREY, "s"),
            linestyle="none",
            label=names[1],
        )
        if label in published.columns:
            named.append((published, style.GREY))
        costs.append(scale * published[cost])
    style.log_axis(axes, pd.concat(costs))
    axes.set(xlabel=name, ylabel=style.TOP1)
    axes.margins(0.08)
    style.legend_right(axes)
    _name_points(axes, [(part, label, paint) for part, paint in named], cost, scale)
    return figure


@style.styled
def budgets(
    table: Frame,
    costs: Sequence[str],
    *,
    named: Sequence[str],
    front: str = "",
    title: str = "",
) -> Figure:
    """Accuracy of kinds of networks against several costs, a panel each.

    Args:
      table: columns kind, label (written at the point, "" nothing), mean, low, high
        (fractions; NaN ends draw no bar) and every one of `costs` (NaN where it was not measured;
        with the columns COST_low and COST_high bars are drawn).
      costs: columns, labelled as in COSTS; drawn on log axes.
      named: costs in whose panels labels are written: in others points lie on each other.
      front: the kind that the others are compared with: its front is a line, and what lies above
        it is the better buy. "" draws none.
      title: of the figure: what was measured on which data.

    Raises:
      ValueError: a column that is missing, or a cost that is not positive.
    """
    stats.require(table, ["kind", "label", "mean", "low", "high", *costs])
    kinds = list(dict.fromkeys(table["kind"]))
    width = style.PAGE if len(costs) > 1 else 4.5
    figure = style.new(width, 2.9 + 0.13 * -(-len(kinds) // 4), title)
    panels = list(figure.subplots(1, len(costs), sharey=True, squeeze=False)[0])
    for axes, cost in zip(panels, costs, strict=True):
        _draw_kinds(axes, table[table[cost].notna()], cost, kinds, front)
    panels[0].set_ylabel(style.TOP1)
    style.letter(panels)
    entries, texts = panels[0].get_legend_handles_labels()
    figure.legend(entries, texts, loc="outside lower center", ncols=min(4, len(kinds)))
    colours = dict(zip(kinds, style.colours(len(kinds)), strict=True))
    for axes, cost in zip(panels, costs, strict=True):
        known = table[table[cost].notna()]
        if cost in named:
            scale = style.COSTS.get(cost, (cost, 1.0))[1]
            parts = [(part, "label", colours[kind]) for kind, part in known.groupby("kind")]
            _name_points(axes, parts, cost, scale)
    return figure


def _draw_kinds(axes: Axes, known: Frame, cost: str, kinds: Sequence[str], compared: str) -> None:
    """One panel of `budgets`."""
    name, scale = style.COSTS.get(cost, (cost, 1.0))
    _check_drawable(known, cost)
    style.finish(axes)
    styles = zip(kinds, style.colours(len(kinds)), style.markers(len(kinds)), strict=True)
    for kind, colour, marker in styles:
        mine = known[known["kind"] == kind]
        bars = None
        if f"{cost}_low" in known.columns:
            ends = (mine[cost] - mine[f"{cost}_low"], mine[f"{cost}_high"] - mine[cost])
            bars = scale * np.array(ends, dtype=float)
        # Bars are long, and the points matter.
        axes.errorbar(
            scale * mine[cost], 100 * mine["mean"], style.percent_bars(mine), bars,
            **{**style.points(colour), "marker": marker, "capsize": 0, "elinewidth": 0.5},
            label=kind,
        )  # fmt: skip
        if kind == compared:
            front = mine[stats.pareto(mine, cost, "mean")].sort_values(cost)
            axes.plot(scale * front[cost], 100 * front["mean"], color=colour, zorder=1)
    if len(known):
        style.log_axis(axes, scale * known[cost])
    axes.set_xlabel(name)
    axes.margins(x=0.12)


@style.styled
def figure5(published: Frame, ours: Frame | None = None, *, title: str = "") -> Figure:
    """Top-1 against multiply-adds, a line per width, points are resolutions.

    The shape of Figure 5 of Sandler et al. 2018 (arXiv 1801.04381).

    Args:
      published: columns width, resolution (pixels), macs_m (millions), top1 (percent); dashed with
        hollow markers.
      ours: the same, drawn solid; with columns low and high (percent) bars are drawn.
      title: of the figure; the resolutions follow it.

    Returns:
      The figure. A width has one colour and marker in both; the legend names widths once.

    Raises:
      ValueError: a column that is missing, or top-1 given as fractions.
    """
    frames = [published] if ours is None else [published, ours]
    for frame in frames:
        stats.require(frame, ["width", "resolution", "macs_m", "top1"])
        if len(frame) and frame["top1"].max() <= 1:
            raise ValueError(
                f"top1 is at most {frame['top1'].max():g}; figure5 takes percent, as published "
                "tables state it."
            )
    widths = stats.levels([w for frame in frames for w in frame["width"].tolist()])
    sides = stats.levels([r for frame in frames for r in frame["resolution"].tolist()])
    rising = f"{', '.join(f'{side:g}' for side in sides)} pixels, rising along each line"
    figure, axes = style.new_axes(5.4, 3.4, f"{title}: {rising}" if title else rising)
    styles = zip(widths, style.colours(len(widths)), style.markers(len(widths)), strict=True)
    for width, colour, marker in styles:
        line = published[published["width"] == width].sort_values("macs_m")
        axes.plot(
            line["macs_m"],
            line["top1"],
            **style.hollow(colour, marker),
            linestyle="--",
            linewidth=1,
            label=f"{float(width)}",
        )
        if ours is None:
            continue
        line = ours[ours["width"] == width].sort_values("macs_m")
        bars = None
        if {"low", "high"} <= set(line.columns):
            bars = np.array([line["top1"] - line["low"], line["high"] - line["top1"]], dtype=float)
        axes.errorbar(line["macs_m"], line["top1"], bars, color=colour, marker=marker, capsize=2)
    style.log_axis(axes, pd.concat([frame["macs_m"] for frame in frames]))
    if ours is not None:
        grey: Any = style.hollow(style.GREY, "o")
        axes.plot([], [], **grey, linestyle="--", linewidth=1, label="published")
        axes.plot([], [], color=style.GREY, marker="o", label="ours")
    axes.set(xlabel=style.COSTS["macs"][0], ylabel=style.TOP1)
    style.legend_right(axes, title="width multiplier")
    return figure


def _name_points(
    axes: Axes, parts: Sequence[tuple[Frame, str, Any]], cost: str, scale: float
) -> None:
    """Writes the labels of frames, (frame, its column of labels, colour), at their points."""
    points = [
        (scale * row[cost], 100 * row["mean"], style.text(row[label]), colour)
        for part, label, colour in parts
        for _, row in part.iterrows()
    ]
    if points:
        labels.place(axes, *zip(*points, strict=True))


def _check_drawable(frame: Frame, cost: str) -> None:
    known = frame["mean"].notna() & (frame[cost] > 0)
    if not known.all():
        raise ValueError(
            f"The rows {frame.index[~known].tolist()} have no mean, or no positive {cost} for the "
            "log axis; leave them out."
        )
