"""Figures of images: grids, the mistakes of a network, feature maps."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mobilenet.analysis.plots import style


@style.styled
def image_grid(
    images: Any, titles: Sequence[str] | None = None, *, columns: int = 8, title: str = ""
) -> Figure:
    """Images next to each other, each under its title.

    Args:
      images: uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3], N at least 1. Grey values run from
        black at 0 to white at 255 in every image.
      titles: one for each image, of one or more lines, or None.
      columns: images per row, at least 1.
      title: of the figure: what the images are, and what their titles say.

    Raises:
      ValueError: another shape or type, or titles that are not one for each image.
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
            "[N, H, W, 3] with at least one image."
        )
    if titles is not None and len(titles) != len(images):
        raise ValueError(
            f"{len(titles)} titles were given for {len(images)} images; give one for each."
        )
    if columns < 1:
        raise ValueError(f"columns is {columns}; give 1 or more.")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    lines = [each.split("\n") for each in titles or ()]
    # Inches: an image has 0.8, and a title what it needs at 7 points.
    longest = max((len(line) for several in lines for line in several), default=0)
    width = max(0.85, 0.062 * longest)
    height = 0.85 + 0.12 * max(map(len, lines), default=1)
    figure = style.new(width * columns, height * rows + (0.25 if title else 0.0), title)
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for place, axes in enumerate(grid):
        axes.set_axis_off()
        if place < len(images):
            axes.imshow(images[place], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            if titles is not None:
                axes.set_title(titles[place], loc="center", fontsize=style.SMALL)
    return figure


def hardest_images(
    evaluation: Any,
    load: Callable[[int], np.ndarray],
    class_names: Sequence[str],
    *,
    most: int = 16,
    columns: int = 8,
    title: str = "",
) -> Figure:
    """The images with the largest loss, the worst first, as "label → prediction, loss".

    A wrong prediction has a loss of at least ln 2 = 0.69 nats, since its label has at most half of
    the probability; so mistakes come before nearly all that is right.

    Args:
      evaluation: a `mobilenet.train.metrics.Evaluation`: index, label, top and loss are read.
      load: an example's index in its split -> the image, uint8 [H, W], [H, W, 1] or [H, W, 3],
        of one shape for all.
      class_names: of the network's outputs.
      most: images to show, at least 1; fewer when the evaluation has fewer.
      columns: images per row, at least 1.
      title: of the figure: which network on which data.

    Raises:
      ValueError: `most` or `columns` below 1, names that are not one for each output, or images
        that cannot be shown.
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
    if max(map(len, titles)) > 16:  # longer ones would be wider than their images
        titles = [f"{label}\n→ {predicted}, {loss}" for label, predicted, loss in rows]
    images = np.stack([load(int(index)) for index in evaluation.index[worst]])
    return image_grid(images, titles, columns=columns, title=title)


@style.styled
def feature_maps(endpoints: Mapping[str, Any], *, channels: int = 8, title: str = "") -> Figure:
    """What one image becomes on its way through the network, a row for each stage.

    Shown are the channels that vary most within the image (largest standard deviation), the most
    varied first. Every map has a grey scale of its own, from its smallest to its largest value, so
    maps can be compared in shape, not in size.

    Args:
      endpoints: name of the stage -> its output for one image, [h, w, c], in order.
      channels: maps per row, at least 1; a stage with fewer channels shows all of them.
      title: of the figure: which image and which network.

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
                "output for one image."
            )
    if channels < 1:
        raise ValueError(f"channels is {channels}; give 1 or more.")
    height = 0.72 * len(maps) + (0.25 if title else 0.0)
    figure = style.new(1.4 + 0.7 * channels, height, title)
    # The first column holds the names.
    ratios = [2.2, *[1.0] * channels]
    grid = figure.subplots(len(maps), channels + 1, squeeze=False, width_ratios=ratios)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, (name, value) in zip(grid, maps.items(), strict=True):
        height, width, count = value.shape
        text = f"{name}\n{height} × {width} × {count:,}"
        row[0].text(0, 0.5, text, transform=row[0].transAxes, va="center")
        order = np.argsort(-value.std(axis=(0, 1)), kind="stable")
        for axes, channel in zip(row[1:], order, strict=False):
            axes.imshow(value[:, :, channel], cmap="gray", interpolation="nearest")
    return figure
