"""Labels of points, each placed where it covers the least."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from mobilenet.analysis.plots import style

# Where a label may stand around its point: points (1/72 inch) and alignments, the best first.
PLACES = (
    *((5, 0, "left", "center"), (-5, 0, "right", "center")),
    *((0, 5, "center", "bottom"), (0, -5, "center", "top")),
    *((4, 4, "left", "bottom"), (4, -4, "left", "top")),
    *((-4, 4, "right", "bottom"), (-4, -4, "right", "top")),
    *((5, 12, "left", "bottom"), (5, -12, "left", "top")),
    *((-5, 12, "right", "bottom"), (-5, -12, "right", "top")),
)


def place(
    axes: Axes,
    xs: Sequence[float],
    ys: Sequence[float],
    texts: Sequence[str],
    colours: Sequence[Any],
) -> None:
    """Writes a text at each point, where it covers least of other texts, points, lines and bars.

    The layout of the figure is computed for it; so everything else must have been drawn.

    Args:
      axes: with what has been drawn.
      xs, ys: the points, in data.
      texts: one for each; "" writes nothing.
      colours: one for each.
    """
    figure: Any = axes.figure
    figure.draw_without_rendering()
    taken = _boxes(_drawn(axes), 2.0 * figure.dpi / 72)
    for x, y, text, colour in zip(xs, ys, texts, colours, strict=True):
        if not text:
            continue
        choices = []
        for right, up, across, along in PLACES:
            annotation = axes.annotate(
                text,
                (x, y),
                xytext=(right, up),
                textcoords="offset points",
                ha=across,
                va=along,
                fontsize=style.SMALL,
                color=colour,
                bbox={"boxstyle": "square,pad=0.1", "color": "white", "alpha": 0.6, "lw": 0},
            )
            # A layout that made room for labels would move the points they were placed for.
            annotation.set_in_layout(False)
            box = np.array(annotation.get_window_extent().extents)
            visible = np.array([axes.bbox.extents])
            outside = _shared(box, box[None]) - _shared(box, visible)
            choices.append((_shared(box, taken) + 3 * outside, annotation, box))
        best = min(choices, key=lambda choice: choice[0])
        taken = np.concatenate([taken, best[2][None]])
        for choice in choices:
            if choice is not best:
                choice[1].remove()


def _drawn(axes: Axes) -> np.ndarray:
    """Pixels [n, 2] along every line, error bar and marker of the axes."""
    paths = [np.asarray(line.get_xydata()) for line in axes.lines if line.get_linestyle() != "None"]
    spots = [np.asarray(line.get_xydata()) for line in axes.lines]
    for collection in axes.collections:
        if isinstance(collection, LineCollection):
            paths += [np.asarray(segment) for segment in collection.get_segments()]
    found = []
    for path, dense in [*((path, True) for path in paths), *((spot, False) for spot in spots)]:
        path = path.reshape(-1, 2)  # bars without ends are empty
        finite = path[np.isfinite(path).all(axis=1)]
        if len(finite):
            pixels = axes.transData.transform(finite)
            found.append(_dense(pixels) if dense else pixels)
    return np.concatenate(found) if found else np.zeros((0, 2))


def _dense(path: np.ndarray) -> np.ndarray:
    """Points along a path, at most 3 pixels apart."""
    parts = [path[:1]]
    for start, end in zip(path[:-1], path[1:], strict=True):
        steps = max(1, int(np.abs(end - start).max() // 3))
        parts.append(np.linspace(start, end, steps + 1)[1:])
    return np.concatenate(parts)


def _boxes(centres: np.ndarray, margin: float) -> np.ndarray:
    return np.concatenate([centres - margin, centres + margin], axis=1)


def _shared(box: np.ndarray, others: np.ndarray) -> float:
    """The area that a box (left, bottom, right, top) shares with others [n, 4], summed."""
    wide = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    high = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    return float((np.maximum(wide, 0) * np.maximum(high, 0)).sum())
