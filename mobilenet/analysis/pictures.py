"""A notebook's figures besides the statistical plots: image grids, feature maps, layer sizes."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from mobilenet.analysis import plots

# Names the folder that `keep` writes to.
FIGURES_VARIABLE = "MOBILENET_FIGURES"


def keep(figure: Figure, name: str) -> Figure:
    """Saves a notebook's figure where MOBILENET_FIGURES says, and hands it back to be shown.

    Args:
      figure: any figure.
      name: of the file, without ending; it begins with the notebook's number. It is written as SVG
        into the folder that the environment variable MOBILENET_FIGURES names, which is made if
        need be. Without the variable nothing is written.
    """
    folder = os.environ.get(FIGURES_VARIABLE)
    if folder:
        plots.save(figure, Path(folder) / f"{name}.svg")
    return figure


def image_grid(images: Any, titles: Sequence[str] | None = None, *, columns: int = 8) -> Figure:
    """Pictures side by side, each under its title.

    Args:
      images: uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3], N at least 1. Grey values run from
        black at 0 to white at 255 in every picture.
      titles: one a picture, of one or more lines, or None.
      columns: pictures a row, at least 1.

    Raises:
      ValueError: another shape or type, or titles that are not one a picture.
    """
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if (
        images.dtype != np.uint8
        or not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3))
        or len(images) == 0
    ):
        raise ValueError(
            f"images is {images.dtype} {list(images.shape)}; give uint8 [N, H, W], [N, H, W, 1] or "
            "[N, H, W, 3] with at least one picture."
        )
    if titles is not None and len(titles) != len(images):
        raise ValueError(
            f"{len(titles)} titles were given for {len(images)} pictures; give one for each."
        )
    if columns < 1:
        raise ValueError(f"columns is {columns}; give 1 or more.")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    lines = [title.split("\n") for title in titles or ()]
    # Inches: a picture has one, and a title what it needs at 9 points.
    width = max(1.25, 0.08 * max((len(line) for title in lines for line in title), default=0))
    height = 1.35 + 0.15 * max(map(len, lines), default=1)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for place, axes in enumerate(grid):
        axes.set_axis_off()
        if place < len(images):
            axes.imshow(images[place], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            if titles is not None:
                axes.set_title(titles[place], fontsize=9)
    return figure


def hardest_pictures(
    evaluation: Any,
    load: Callable[[int], np.ndarray],
    class_names: Sequence[str],
    *,
    most: int = 16,
    columns: int = 8,
) -> Figure:
    """The pictures with the largest loss, the worst first, as "label → prediction, loss".

    A wrong prediction has a loss of at least ln 2 = 0.69 nats, since its label has at most half of
    the probability; so mistakes come before nearly all that is right.

    Args:
      evaluation: a `mobilenet.train.metrics.Evaluation`: index, label, top and loss are read.
      load: an example's index in its split -> the picture, uint8 [H, W], [H, W, 1] or [H, W, 3],
        of one shape for all.
      class_names: of the network's outputs.
      most: pictures to show, at least 1; fewer when the evaluation has fewer.
      columns: pictures a row, at least 1.

    Raises:
      ValueError: `most` or `columns` below 1, names that are not one an output, or pictures that
        cannot be shown.
    """
    if most < 1:
        raise ValueError(f"most is {most}; give 1 or more.")
    if len(class_names) != evaluation.num_classes:
        raise ValueError(
            f"{len(class_names)} class names were given for {evaluation.num_classes} outputs; give "
            "one for each."
        )
    worst = np.argsort(-evaluation.loss, kind="stable")[:most]
    labels = [class_names[k] for k in evaluation.label[worst]]
    predictions = [class_names[k] for k in evaluation.top[worst, 0]]
    losses = [f"{loss:.2f}" for loss in evaluation.loss[worst]]
    rows = list(zip(labels, predictions, losses, strict=True))
    titles = [f"{label} → {predicted}, {loss}" for label, predicted, loss in rows]
    if max(map(len, titles)) > 16:  # longer ones would be wider than their pictures
        titles = [f"{label}\n→ {predicted}, {loss}" for label, predicted, loss in rows]
    images = np.stack([load(int(index)) for index in evaluation.index[worst]])
    return image_grid(images, titles, columns=columns)


def feature_maps(endpoints: Mapping[str, Any], *, channels: int = 8) -> Figure:
    """What one picture becomes on its way through the network, a row a stage.

    Shown are the channels that vary most within the picture (largest standard deviation), the most
    varied first. Every map has a grey scale of its own, from its smallest to its largest value, so
    maps can be compared in shape, not in size.

    Args:
      endpoints: name of the stage -> its output for one picture, [h, w, c], in order.
      channels: maps a row, at least 1; a stage with fewer channels shows all of them.

    Raises:
      ValueError: no endpoint, one that is not [h, w, c], or channels below 1.
    """
    maps = {name: np.asarray(value, np.float32) for name, value in endpoints.items()}
    if not maps:
        raise ValueError("endpoints is empty; give at least one stage's output [h, w, c].")
    for name, value in maps.items():
        if value.ndim != 3:
            raise ValueError(
                f"The endpoint {name} has the shape {list(value.shape)}; give [h, w, c], the "
                "output for one picture."
            )
    if channels < 1:
        raise ValueError(f"channels is {channels}; give 1 or more.")
    figure = Figure(figsize=(1.9 + 0.8 * channels, 0.85 * len(maps)), layout="constrained")
    # The first column holds the names.
    ratios = [2.2, *[1.0] * channels]
    grid = figure.subplots(len(maps), channels + 1, squeeze=False, width_ratios=ratios)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, (name, value) in zip(grid, maps.items(), strict=True):
        height, width, count = value.shape
        text = f"{name}\n{height} × {width} × {count:,}"
        row[0].text(0, 0.5, text, transform=row[0].transAxes, va="center", fontsize=9)
        order = np.argsort(-value.std(axis=(0, 1)), kind="stable")
        for axes, channel in zip(row[1:], order, strict=False):
            axes.imshow(value[:, :, channel], cmap="gray", interpolation="nearest")
    return figure


def shares(table: pd.DataFrame, *, ylabel: str, xlabel: str) -> Figure:
    """What a whole consists of: a stacked bar of 100 % a row, a segment a column.

    Args:
      table: amounts of one unit, none negative, no row without any; the index names the bars, from
        the top, the columns name the segments, from the left.
      ylabel: what the index is; xlabel: what the amounts are shares of.

    Raises:
      ValueError: a missing or negative amount, or a row whose sum is 0.
    """
    amounts = table.to_numpy(dtype=float)
    if amounts.size == 0 or not (amounts >= 0).all() or not (amounts.sum(axis=1) > 0).all():
        raise ValueError(
            "The table of shares has a missing or negative amount, or a row without any; give "
            "amounts of 0 or more, and something in every row."
        )
    percent = 100 * amounts / amounts.sum(axis=1, keepdims=True)
    bars = [str(name) for name in table.index]
    # Brightness rises along it, so segments differ when printed grey.
    colours = colormaps["viridis"](np.linspace(0.05, 0.95, len(table.columns)))
    figure = Figure(figsize=(8, 0.9 + 0.45 * len(table)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(table))
    for column, (name, colour) in enumerate(zip(table.columns, colours, strict=True)):
        size = percent[:, column]
        axes.barh(bars, size, left=left, color=colour, edgecolor="white", label=str(name))
        text = "white" if np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.5 else "black"
        for bar, (start, width) in enumerate(zip(left, size, strict=True)):
            if width >= 3:  # narrower segments have no room for digits
                middle = start + width / 2
                axes.text(
                    middle, bar, f"{width:.0f}", color=text, ha="center", va="center", fontsize=8
                )
        left = left + size
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def tensor_sizes(table: pd.DataFrame, limits: Mapping[str, float], *, ylabel: str) -> Figure:
    """How large every layer's output is, in order of computation, with limits drawn across.

    Args:
      table: one row a layer: `layer` (its name), `kind` (groups layers by colour) and `size`.
      limits: label -> a size of the same unit, drawn as a line, such as a peak.
      ylabel: what the sizes are, with their unit.

    Raises:
      ValueError: no layer.
    """
    if len(table) == 0:
        raise ValueError("The table of tensor sizes has no layer; give at least one.")
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(len(table))
    sizes = table["size"].to_numpy(dtype=float)
    kinds = list(dict.fromkeys(table["kind"]))
    colours = colormaps["viridis"](np.linspace(0.1, 0.85, len(kinds)))
    for kind, colour in zip(kinds, colours, strict=True):
        chosen = (table["kind"] == kind).to_numpy()
        axes.bar(positions[chosen], sizes[chosen], width=0.85, color=colour, label=kind)
    for (label, size), style in zip(limits.items(), ("--", "-.", ":") * len(limits), strict=False):
        axes.axhline(size, color="0.25", linestyle=style, linewidth=1.2, label=label)
    axes.set_xticks(positions, [str(name) for name in table["layer"]], rotation=90, fontsize=6)
    axes.set(ylabel=ylabel, xlim=(-0.8, len(table) - 0.2), ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    # Above the axes, where it covers neither bars nor lines.
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    return figure
