"""Metrics over the course of training, and confusion matrices of what came out."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mobilenet.analysis import stats
from mobilenet.analysis.plots import style
from mobilenet.analysis.stats import Column, Frame

# Metric -> (axis label, factor to its unit, the least and the most it can be).
METRICS = {
    "top1": (style.TOP1, 100.0),
    "top5": ("top-5, %", 100.0),
    "accuracy": (style.TOP1, 100.0),
    "loss": ("cross-entropy, nats", 1.0),
    "gradient_norm": ("gradient norm", 1.0),
    "learning_rate": ("learning rate", 1.0),
    "images_per_second": ("images per second", 1.0),
    "data_wait": ("time spent waiting for data, %", 100.0),
}
SPLITS = {"train": "training"}


@style.styled
def learning_curves(
    metrics: Frame,
    runs_frame: Frame,
    by: str,
    metric: str = "top1",
    split: str = "validation",
    *,
    title: str = "",
) -> Figure:
    """A metric over training: mean line and t-interval band over seeds, a line per value of `by`.

    Args:
      metrics: of `load_runs`; only the runs of `runs_frame` are drawn.
      runs_frame: of `load_runs`, or `Runs.done`, or any part of it; needs `seed` and `by`.
      by: column whose values are told apart; lines are ordered by them, those of a categorical
        column as its categories are.
      metric, split: as in `metrics`, such as "loss" and "train".
      title: of the figure: what was trained on which data.

    Returns:
      The figure. Legends say how many seeds a line has; one seed draws a line without a band, and
      at epochs that only some seeds reached the mean is over those. Bands end where the metric
      does: no loss is below 0, no accuracy above 100 %. A single line has no legend.

    Raises:
      ValueError: a column that is missing, nothing recorded to draw, or a seed that one value of
        `by` has twice.
    """
    stats.require(runs_frame, ["seed", by])
    stats.require(metrics, ["run", "epoch", "split", "metric", "value"])
    rows = _recorded(metrics, runs_frame, metric, split)
    values = [None if stats.is_missing(v) else v for v in runs_frame[by].tolist()]
    name, scale = METRICS.get(metric, (metric, 1.0))
    figure, axes = style.new_axes(5.2, 2.7, title)
    levels = _levels(runs_frame[by], values)
    styles = zip(levels, style.colours(len(levels)), style.markers(len(levels)), strict=True)
    for level, colour, marker in styles:
        runs = runs_frame[[v == level for v in values]]
        if runs["seed"].duplicated().any():
            raise ValueError(
                f"{by}={level!r} has a seed twice among {', '.join(map(str, runs.index))}; the "
                "runs differ in more than it. Draw a part of them."
            )
        mine = rows[rows["run"].isin(runs.index)]
        by_epoch: Any = mine.groupby("epoch")["value"]
        epochs = [epoch for epoch, _ in by_epoch]
        within = stats.range_of(metric)
        means = [stats.mean_interval(part, within=within) for _, part in by_epoch]
        axes.plot(
            epochs,
            [scale * mean.mean for mean in means],
            color=colour,
            marker=marker,
            markevery=max(1, len(epochs) // 15),
            label=f"{style.text(level)} (n = {mine['run'].nunique()})",
        )
        if any(mean.n > 1 for mean in means):
            axes.fill_between(
                epochs,
                [scale * mean.low for mean in means],
                [scale * mean.high for mean in means],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))
    axes.set(xlabel="epoch", ylabel=f"{SPLITS.get(split, split)} {name}", xlim=(0, None))
    if len(levels) > 1:
        style.legend_right(axes, title=by)
    return figure


def _recorded(metrics: Frame, runs_frame: Frame, metric: str, split: str) -> Frame:
    """The rows of a metric; ValueError if these runs recorded none."""
    known = metrics[metrics["run"].isin(runs_frame.index)]
    rows = known[(known["metric"] == metric) & (known["split"] == split)]
    if rows.empty:
        pairs = sorted(set(zip(known["split"], known["metric"], strict=True)))
        raise ValueError(
            f"These runs recorded no {split} {metric}; they have "
            f"{', '.join(f'{s} {m}' for s, m in pairs) or 'no metrics'}."
        )
    return rows


def _levels(column: Column, values: Sequence[Any]) -> list[Any]:
    """The distinct values of a column, in the order of its categories if it has any."""
    levels = stats.levels(values)
    if isinstance(column.dtype, pd.CategoricalDtype):
        order = list(column.dtype.categories)
        levels.sort(key=lambda level: len(order) if level is None else order.index(level))
    return levels


@style.styled
def confusion_matrix(matrix: np.ndarray, class_names: Sequence[str], *, title: str = "") -> Figure:
    """A confusion matrix: colours are shares of the true class, texts are counts.

    Args:
      matrix: [K, K] counts, true classes down and predicted ones across.
      class_names: K names.
      title: of the figure: which network on which data.

    Returns:
      The figure. Counts are written for K <= 20; a class without images has a white row.

    Raises:
      ValueError: shapes that do not fit.
    """
    counts = np.asarray(matrix)
    classes = len(class_names)
    if counts.shape != (classes, classes):
        raise ValueError(
            f"The matrix is {counts.shape} and there are {classes} class names; it must be "
            f"({classes}, {classes})."
        )
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    side = min(8.0, 1.7 + 0.26 * classes)
    figure, axes = style.new_axes(side + 0.9, side, title, layout="compressed")
    axes.grid(visible=False)
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    bar = figure.colorbar(image, ax=axes, label="share of the true class, %")
    bar.ax.tick_params(labelsize=style.SMALL)
    # More names than fit would cover each other; every k-th is shown.
    ticks = np.arange(0, classes, max(1, math.ceil(classes / 40)))
    names = [class_names[k] for k in ticks.tolist()]
    crowded = max(map(len, names), default=0) * len(names) > 30
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, names, **(slanted if crowded else {}))
    axes.set_yticks(ticks, names)
    if classes <= 20:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                white = shares[row, column] > 0.55
                axes.text(
                    column, row, f"{count:g}", color="white" if white else "black",
                    ha="center", va="center", fontsize=style.SMALL,
                )  # fmt: skip
    axes.set(xlabel="predicted class", ylabel="true class")
    return figure
