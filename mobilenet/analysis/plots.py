"""Plots of runs and summaries, as `matplotlib.figure.Figure` objects; pyplot is not used.

Accuracies come as fractions and are drawn in percent; `figure5` alone takes percent, the unit of
published tables. Colours rise in lightness and lines differ in their markers, so that a grey print
tells them apart.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from mobilenet.analysis import stats
from mobilenet.analysis.stats import Column, Frame

# Cost column -> (axis label, factor to its unit).
COSTS = {
    "macs": ("multiply-adds an image, millions", 1e-6),
    "params": ("parameters, millions", 1e-6),
    "bytes": ("size of the parameters, MB", 1e-6),
    "wall_seconds": ("training, s", 1.0),
    "first_step_seconds": ("start to first step, s", 1.0),
    "sparse_gzip_bytes": ("smallest file, MB", 1e-6),
    "latency_ms": ("one picture here, ms", 1.0),
}
# Metric -> (axis label, factor to its unit).
METRICS = {
    "top1": ("top-1, %", 100.0),
    "top5": ("top-5, %", 100.0),
    "accuracy": ("top-1, %", 100.0),
    "loss": ("cross-entropy, nats", 1.0),
    "gradient_norm": ("norm of the gradient", 1.0),
    "learning_rate": ("learning rate", 1.0),
    "images_per_second": ("images a second", 1.0),
    "data_wait": ("time spent waiting for data, %", 100.0),
}
TOP1 = METRICS["top1"][0]
MARKERS = "osD^vP*X<>"
GREY = "0.45"


def save(figure: Figure, path: Path) -> None:
    """Writes a figure; saved or made again, it gives the same bytes.

    No dates and no program versions are written, and the ids within an SVG do not change.

    Args:
      figure: to write; its layout is fixed from then on.
      path: ends in .svg or .png; its folder is made.

    Raises:
      ValueError: another ending.
    """
    if path.suffix not in (".svg", ".png"):
        raise ValueError(f"{path} ends in {path.suffix!r}; figures are written as .svg or .png.")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Every pass of a layout engine starts from the last one's axes and moves them a little.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    hidden = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}
    with matplotlib.rc_context({"svg.hashsalt": "mobilenet"}):
        figure.savefig(path, dpi=150, metadata=hidden[path.suffix])


def pareto(
    summary: Frame,
    cost: str,
    *,
    label: str,
    published: Frame | None = None,
    names: tuple[str, str] = ("ours", "published"),
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

    Returns:
      The figure. The front is a line through the points of `summary` alone.

    Raises:
      ValueError: a column that is missing, or a cost or mean that is missing or not positive.
    """
    stats.require(summary, [cost, label, "mean", "low", "high"])
    _check_drawable(summary, cost)
    name, scale = COSTS.get(cost, (cost, 1.0))
    figure, axes = _figure(6.0, 4.2)
    dark, middle, _ = _colours(3)
    front = summary[stats.pareto(summary, cost, "mean")].sort_values(cost)
    axes.plot(
        scale * front[cost],
        100 * front["mean"],
        color=middle,
        label=f"front of {names[0]}",
        zorder=1,
    )
    axes.errorbar(
        scale * summary[cost],
        100 * summary["mean"],
        _bars(summary),
        **_points(dark),
        label=names[0],
    )
    _name_points(axes, scale * summary[cost], summary, label, dark)
    costs = [scale * summary[cost]]
    if published is not None:
        stats.require(published, [cost, "mean"])
        _check_drawable(published, cost)
        axes.plot(
            scale * published[cost],
            100 * published["mean"],
            **_hollow(GREY, "s"),
            linestyle="none",
            label=names[1],
        )
        if label in published.columns:
            _name_points(axes, scale * published[cost], published, label, GREY)
        costs.append(scale * published[cost])
    log_axis(axes, pd.concat(costs))
    axes.set(xlabel=name, ylabel=TOP1)
    _legend_beside(axes)
    return figure


def budgets(table: Frame, costs: Sequence[str], *, named: str) -> Figure:
    """Accuracy of kinds of networks against several costs, a panel each.

    Args:
      table: columns kind, label (written at the point, "" nothing), mean, low, high
        (fractions; NaN ends draw no bar) and every one of `costs` (NaN where it was not measured).
        The first kind is what the others are held against: its front is a line, and what lies above
        it is the better buy.
      costs: columns, labelled as in COSTS; drawn on log axes.
      named: the cost in whose panel labels are written: in others points lie on each other.

    Raises:
      ValueError: a column that is missing, or a cost that is not positive.
    """
    stats.require(table, ["kind", "label", "mean", "low", "high", *costs])
    kinds = list(dict.fromkeys(table["kind"]))
    figure = Figure(figsize=(1.9 + 3.5 * len(costs), 3.9), layout="constrained")
    panels = list(figure.subplots(1, len(costs), sharey=True, squeeze=False)[0])
    for axes, cost in zip(panels, costs, strict=True):
        name, scale = COSTS.get(cost, (cost, 1.0))
        known = table[table[cost].notna()]
        _check_drawable(known, cost)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        for kind, colour, marker in zip(
            kinds, _colours(len(kinds)), _markers(len(kinds)), strict=True
        ):
            mine = known[known["kind"] == kind]
            pale = (*colour[:3], 0.3)  # bars are long, and the points matter
            style = {**_points(colour), "marker": marker, "ecolor": pale, "capsize": 0}
            axes.errorbar(scale * mine[cost], 100 * mine["mean"], _bars(mine), **style, label=kind)
            if kind == kinds[0]:
                front = mine[stats.pareto(mine, cost, "mean")].sort_values(cost)
                axes.plot(scale * front[cost], 100 * front["mean"], color=colour, zorder=1)
        if len(known):
            if cost == named:
                _name_points(axes, scale * known[cost], known, "label", "0.2")
            log_axis(axes, scale * known[cost])
        axes.set_xlabel(name)
        axes.margins(x=0.2)
    panels[0].set_ylabel(TOP1)
    _legend_beside(panels[-1])
    return figure


def learning_curves(
    metrics: Frame,
    runs_frame: Frame,
    by: str,
    metric: str = "top1",
    split: str = "validation",
) -> Figure:
    """A metric over training: mean line and t-interval band over seeds, a line per value of `by`.

    Args:
      metrics: of `load_runs`; only the runs of `runs_frame` are drawn.
      runs_frame: of `load_runs`, or `Runs.done`, or any part of it; needs `seed` and `by`.
      by: column whose values are told apart; lines are ordered by them, those of a categorical
        column as its categories are.
      metric, split: as in `metrics`, such as "loss" and "train".

    Returns:
      The figure. Legends say how many seeds a line has; one seed draws a line without a band, and
      at epochs that only some seeds reached the mean is over those.

    Raises:
      ValueError: a column that is missing, nothing recorded to draw, or a seed that one value of
        `by` has twice.
    """
    stats.require(runs_frame, ["seed", by])
    stats.require(metrics, ["run", "epoch", "split", "metric", "value"])
    rows = metrics[(metrics["metric"] == metric) & (metrics["split"] == split)]
    rows = rows[rows["run"].isin(runs_frame.index)]
    if rows.empty:
        known = metrics[metrics["run"].isin(runs_frame.index)]
        pairs = sorted(set(zip(known["split"], known["metric"], strict=True)))
        raise ValueError(
            f"These runs recorded no {split} {metric}; they have "
            f"{', '.join(f'{s} {m}' for s, m in pairs) or 'no metrics'}."
        )
    values = [None if stats.is_missing(v) else v for v in runs_frame[by].tolist()]
    name, scale = METRICS.get(metric, (metric, 1.0))
    figure, axes = _figure(6.0, 4.0)
    levels = _levels(runs_frame[by], values)
    for level, colour, marker in zip(
        levels, _colours(len(levels)), _markers(len(levels)), strict=True
    ):
        runs = runs_frame[[v == level for v in values]]
        if runs["seed"].duplicated().any():
            raise ValueError(
                f"{by}={level!r} has a seed twice among {', '.join(map(str, runs.index))}; the "
                "runs differ in more than it. Draw a part of them."
            )
        mine = rows[rows["run"].isin(runs.index)]
        by_epoch: Any = mine.groupby("epoch")["value"]
        epochs = [epoch for epoch, _ in by_epoch]
        means = [stats.mean_interval(part) for _, part in by_epoch]
        axes.plot(
            epochs,
            [scale * mean.mean for mean in means],
            color=colour,
            marker=marker,
            markersize=4,
            markevery=max(1, len(epochs) // 15),
            label=f"{_text(level)} (n = {mine['run'].nunique()})",
        )
        if any(mean.n > 1 for mean in means):
            axes.fill_between(
                epochs,
                [scale * mean.low for mean in means],
                [scale * mean.high for mean in means],
                color=colour,
                alpha=0.2,
                linewidth=0,
            )
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))
    axes.set(xlabel="epoch", ylabel=f"{split} {name}", xlim=(0, None))
    _legend_beside(axes, title=by)
    return figure


def accuracy_against_bits(summary: Frame, *, label: str = TOP1) -> Figure:
    """Accuracy of quantised models against their bits, a line per method.

    Args:
      summary: columns bits (of a weight), method, mean, low, high (fractions; NaN ends draw no
        bar).
      label: of the vertical axis, with its unit; values are multiplied by 100.

    Raises:
      ValueError: a column that is missing.
    """
    stats.require(summary, ["bits", "method", "mean", "low", "high"])
    figure, axes = _figure(5.6, 3.8)
    methods = stats.levels(summary["method"].tolist())
    for method, colour, marker in zip(
        methods, _colours(len(methods)), _markers(len(methods)), strict=True
    ):
        line = summary[summary["method"] == method].sort_values("bits")
        axes.errorbar(
            line["bits"],
            100 * line["mean"],
            _bars(line),
            color=colour,
            marker=marker,
            capsize=3,
            label=_text(method),
        )
    axes.set_xticks(stats.levels(summary["bits"].tolist()))
    axes.set(xlabel="bits of a weight", ylabel=label)
    _legend_beside(axes, title="method")
    return figure


def sensitivity(frame: Frame) -> Figure:
    """What a network loses when one site alone is rounded: a line a site, a point each bits.

    Args:
      frame: columns site, bits and divergence (nats; those of 0 are drawn at the axis's end), as
        `mobilenet quantize --sensitivity` writes them, sites in the order to be drawn in.

    Raises:
      ValueError: a column that is missing.
    """
    stats.require(frame, ["site", "bits", "divergence"])
    names = [str(site).removesuffix("/weights").removesuffix("/conv") for site in frame["site"]]
    frame = frame.assign(layer=names)
    layers = list(dict.fromkeys(names))
    positive = frame["divergence"][frame["divergence"] > 0]
    least = float(positive.min()) if len(positive) else 1e-6
    figure, axes = _figure(6.4, 1.2 + 0.17 * len(layers))
    bits = sorted(set(frame["bits"].tolist()), reverse=True)
    for count, colour, marker in zip(
        bits, _colours(len(bits))[::-1], _markers(len(bits)), strict=True
    ):
        line = frame[frame["bits"] == count]
        axes.plot(
            np.maximum(line["divergence"], least),
            [layers.index(layer) for layer in line["layer"]],
            color=colour,
            marker=marker,
            markersize=4,
            linestyle="none",
            label=_text(count),
        )
    axes.set_yticks(np.arange(len(layers)), [_text(layer) for layer in layers], fontsize=7)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.set_xlabel("divergence of the outputs from the float network's, nats")
    _legend_beside(axes, title="bits")
    engine: Any = figure.get_layout_engine()
    # Small text is wider in the saved file's pixels than in those that the layout measures.
    engine.set(w_pad=0.12)
    return figure


def confusion_matrix(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """A confusion matrix: colours are shares of the true class, texts are counts.

    Args:
      matrix: [K, K] counts, true classes down and predicted ones across.
      class_names: K names.

    Returns:
      The figure. Counts are written for K <= 20; a class without pictures has a white row.

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
    side = min(10.0, 2.2 + 0.36 * classes)
    figure, axes = _figure(side + 0.8, side, layout="compressed")
    axes.grid(visible=False)
    image = axes.imshow(100 * shares, cmap="Greys", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="share of the true class, %")
    # More names than fit would cover each other; every k-th is shown.
    ticks = np.arange(0, classes, max(1, math.ceil(classes / 40)))
    names = [class_names[k] for k in ticks.tolist()]
    crowded = max(map(len, names), default=0) * len(names) > 30
    axes.set_xticks(ticks, names, rotation=90 if crowded else 0)
    axes.set_yticks(ticks, names)
    if classes <= 20:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                white = shares[row, column] > 0.55
                axes.text(
                    column, row, f"{count:g}", color="white" if white else "black",
                    ha="center", va="center", fontsize=8,
                )  # fmt: skip
    axes.set(xlabel="predicted class", ylabel="true class")
    return figure


def figure5(published: Frame, ours: Frame | None = None) -> Figure:
    """Top-1 against multiply-adds, a line per width, points are resolutions.

    The shape of Figure 5 of Sandler et al. 2018 (arXiv 1801.04381).

    Args:
      published: columns width, resolution (pixels), macs_m (millions), top1 (percent); dashed with
        hollow markers.
      ours: the same, drawn solid; with columns low and high (percent) bars are drawn.

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
    figure, axes = _figure(6.4, 4.4)
    for width, colour, marker in zip(
        widths, _colours(len(widths)), _markers(len(widths)), strict=True
    ):
        line = published[published["width"] == width].sort_values("macs_m")
        axes.plot(
            line["macs_m"],
            line["top1"],
            **_hollow(colour, marker),
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
        axes.errorbar(
            line["macs_m"], line["top1"], bars, color=colour, marker=marker, markersize=5, capsize=3
        )
    log_axis(axes, pd.concat([frame["macs_m"] for frame in frames]))
    if ours is not None:
        axes.plot([], [], **_hollow(GREY, "o"), linestyle="--", linewidth=1, label="published")
        axes.plot([], [], color=GREY, marker="o", markersize=5, label="ours")
    sides = stats.levels([r for frame in frames for r in frame["resolution"].tolist()])
    axes.set_title(
        f"{', '.join(f'{side:g}' for side in sides)} pixels, rising along each line",
        loc="left",
        fontsize=9,
    )
    axes.set(xlabel=COSTS["macs"][0], ylabel=TOP1)
    _legend_beside(axes, title="width multiplier")
    return figure


def intervals(table: Frame, *, label: str = TOP1) -> Figure:
    """Variants of an experiment as points with their intervals, one below the other.

    Args:
      table: columns variant, mean, low, high (fractions; NaN ends draw no bar), and optionally n
        (seeds, written beside the variant) and baseline (boolean: the others are compared with it,
        drawn hollow with a dashed line through its mean). Drawn in the table's order.
      label: of the axis, with its unit; values are multiplied by 100.

    Raises:
      ValueError: a column that is missing.
    """
    stats.require(table, ["variant", "mean", "low", "high"])
    figure, axes = _rows(table["variant"], table.get("n"))
    dark = _colours(1)[0]
    places = np.arange(len(table))
    marked = np.zeros(len(table), dtype=bool)
    if "baseline" in table.columns:
        marked = table["baseline"].to_numpy(dtype=bool)
    for mean in table["mean"][marked]:
        axes.axvline(100 * mean, color=GREY, linestyle="--", linewidth=1, zorder=1)
    for chosen, style in ((~marked, {}), (marked, {"markerfacecolor": "white"})):
        part = table[chosen]
        axes.errorbar(
            100 * part["mean"], places[chosen], xerr=_bars(part), **{**_points(dark), **style}
        )
    axes.set_xlabel(label)
    return figure


def differences(table: Frame) -> Figure:
    """Differences of accuracy with their intervals, one below the other, and a line at zero.

    Args:
      table: columns comparison ("A against B", its difference being A - B), mean, low, high
        (fractions; NaN ends draw no bar), and optionally n (common seeds, written beside the
        comparison) and margin (a fraction: accuracies that differ by less count as equal, a grey
        box around zero; NaN draws none). Drawn in the table's order.

    Raises:
      ValueError: a column that is missing.
    """
    stats.require(table, ["comparison", "mean", "low", "high"])
    figure, axes = _rows(table["comparison"], table.get("n"))
    places = np.arange(len(table))
    axes.axvline(0, color="0.2", linewidth=0.8, zorder=1)
    if "margin" in table.columns:
        known = table["margin"].notna().to_numpy()
        margin = 100 * table["margin"][known]
        axes.barh(places[known], 2 * margin, left=-margin, height=0.7, color="0.85", zorder=0)
    axes.errorbar(100 * table["mean"], places, xerr=_bars(table), **_points(_colours(1)[0]))
    axes.set_xlabel("difference of top-1, percentage points")
    return figure


def _rows(names: Column, seeds: Column | None) -> tuple[Figure, Axes]:
    """A figure with a named row for each of `names`, from the top, and how many seeds it has."""
    texts = [_text(name) for name in names]
    if seeds is not None:
        texts = [f"{text} (n = {n:g})" for text, n in zip(texts, seeds, strict=True)]
    # Long names leave the axes their width.
    width = max(5.6, 3.6 + 0.07 * max(map(len, texts), default=0))
    figure, axes = _figure(width, 1.1 + 0.36 * len(names))
    axes.set_yticks(np.arange(len(names)), texts)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    return figure, axes


def _levels(column: Column, values: Sequence[Any]) -> list[Any]:
    """The distinct values of a column, in the order of its categories if it has any."""
    levels = stats.levels(values)
    if isinstance(column.dtype, pd.CategoricalDtype):
        order = list(column.dtype.categories)
        levels.sort(key=lambda level: len(order) if level is None else order.index(level))
    return levels


def _figure(
    width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained"
) -> tuple[Figure, Axes]:
    """A figure of this many inches with one set of axes; compressed suits a fixed aspect."""
    figure = Figure(figsize=(width, height), layout=layout)
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _colours(n: int) -> list[Any]:
    """n colours from dark to light; the lightest still shows on white."""
    return list(matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, n)))


def _markers(n: int) -> list[str]:
    return [MARKERS[k % len(MARKERS)] for k in range(n)]


def _points(colour: Any) -> dict[str, Any]:
    return {"color": colour, "marker": "o", "markersize": 5, "capsize": 3, "linestyle": "none"}


def _hollow(colour: Any, marker: str) -> dict[str, Any]:
    return {"color": colour, "marker": marker, "markersize": 5, "markerfacecolor": "white"}


def _bars(frame: Frame) -> np.ndarray:
    """Lengths of error bars below and above the mean, in percent: [2, n]."""
    below, above = frame["mean"] - frame["low"], frame["high"] - frame["mean"]
    return 100 * np.array([below, above], dtype=np.float64)


def _check_drawable(frame: Frame, cost: str) -> None:
    known = frame["mean"].notna() & (frame[cost] > 0)
    if not known.all():
        raise ValueError(
            f"The rows {frame.index[~known].tolist()} have no mean, or no positive {cost} for the "
            "log axis; leave them out."
        )


def _name_points(axes: Axes, costs: Column, frame: Frame, label: str, colour: Any) -> None:
    """Names points below and right of them; left and above where another is close on the right."""
    places = np.log(costs.to_numpy(dtype=np.float64))
    near = 0.08 * np.ptp(places)
    for x, place, mean, name in zip(costs, places, frame["mean"], frame[label], strict=True):
        crowded = np.any((places > place) & (places < place + near))
        axes.annotate(
            _text(name),
            (x, 100 * mean),
            xytext=(-5, 4) if crowded else (6, -10),
            ha="right" if crowded else "left",
            textcoords="offset points",
            fontsize=8,
            color=colour,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )


def log_axis(axes: Axes, values: Sequence[float] | Column) -> None:
    """A log axis whose ticks are plain numbers, also where `values` span less than a decade."""
    axes.set_xscale("log")
    wide = max(values) > 4 * min(values)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend_beside(axes: Axes, title: str | None = None) -> None:
    """A legend to the right of the axes, where it covers no data."""
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, frameon=False, title=title
    )


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
