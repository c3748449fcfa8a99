"""How every figure looks: one set of fonts, sizes and colours, and files that are the same again.

Figures are `matplotlib.figure.Figure` objects; pyplot is not used. Text is 7 to 8.5 points at the
figure's own size, which is the column or the page of a paper. Colours are those of Okabe and Ito
(2008), which colour-blind readers tell apart; lines differ in their markers too, for grey prints.
"""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from mobilenet.analysis.stats import Column

# Inches: the width of a column and of a page of a paper.
COLUMN, PAGE = 3.5, 7.0
SMALL = 7.0  # points: values, legends and the labels of ticks

RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    # Verdana has the widths of DejaVu Sans, which the layout measures.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "axes.titlesize": 8.0,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.7,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.title_fontsize": SMALL,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.0,
    # Text stays text: files are small, can be searched, and do not depend on a font's outlines.
    "svg.fonttype": "none",
    "svg.hashsalt": "mobilenet",
}
# Blue, vermilion, green, orange, sky blue, purple, black.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#000000")
MARKERS = "osD^vP*X<>"
GREY = "0.45"

# Cost column -> (axis label, factor to its unit).
COSTS = {
    "macs": ("multiply-adds per image, millions", 1e-6),
    "params": ("parameters, millions", 1e-6),
    "bytes": ("size of the parameters, MB", 1e-6),
    "wall_seconds": ("training, s", 1.0),
    "first_step_seconds": ("start to first step, s", 1.0),
    "sparse_gzip_bytes": ("smallest file, MB", 1e-6),
    "latency_ms": ("latency of one image, ms", 1.0),
}
TOP1 = "top-1, %"
# How papers spell data sets; scales of experiments are named after theirs.
DATA_SETS = {"cifar10": "CIFAR-10", "cifar": "CIFAR-10", "cifar100": "CIFAR-100"}
DATA_SETS |= {"imagenet2012": "ImageNet", "tf_flowers": "flowers"}
NETWORKS = {"mobilenet_v1": "MobileNetV1", "mobilenet_v2": "MobileNetV2"}

# Names the folder that `keep` writes to.
FIGURES_VARIABLE = "MOBILENET_FIGURES"

P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """A function that makes a figure, with the style of all figures while it draws."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(RC):
            return draw(*args, **kwargs)

    return drawn


@styled
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
    figure.savefig(path, dpi=200, metadata=hidden[path.suffix])


def keep(figure: Figure, name: str) -> Figure:
    """Saves a notebook's figure where MOBILENET_FIGURES says, and returns it to be shown.

    Args:
      figure: any figure.
      name: of the file, without ending; it begins with the notebook's number. It is written as SVG
        into the folder that the environment variable MOBILENET_FIGURES names, which is made if
        need be. Without the variable nothing is written.
    """
    folder = os.environ.get(FIGURES_VARIABLE)
    if folder:
        save(figure, Path(folder) / f"{name}.svg")
    return figure


def new(
    width: float,
    height: float,
    title: str = "",
    layout: Literal["constrained", "compressed"] = "constrained",
) -> Figure:
    """An empty figure of this many inches; compressed suits axes of a fixed aspect.

    Args:
      width, height: inches; a title that needs several lines makes the figure higher.
      title: in bold above everything; "" is none.
      layout: of matplotlib.
    """
    figure = Figure(figsize=(width, height), layout=layout)
    if title:
        shown = figure.suptitle(title, x=0.01, ha="left", fontsize=8.5, fontweight="bold")
        lines = _break(shown, 0.98 * figure.bbox.width)
        figure.set_size_inches(width, height + 0.14 * (lines - 1))
    return figure


def _break(shown: Text, width: float) -> int:
    """Breaks a text between words into lines of at most so many pixels; returns their number.

    Lines are as short as their number allows, so that no word stands alone on the last one.
    """
    words = shown.get_text().split()
    lines = _fill(shown, words, width)
    while len(shorter := _fill(shown, words, width := 0.95 * width)) == len(lines) > 1:
        lines = shorter
    shown.set_text("\n".join(lines))
    return len(lines)


def _fill(shown: Text, words: Sequence[str], width: float) -> list[str]:
    """Lines of words that are at most so many pixels wide; a longer word has a line of its own."""
    lines: list[str] = []
    for word in words:
        longer = f"{lines[-1]} {word}" if lines else word
        shown.set_text(longer)
        if lines and shown.get_window_extent().width <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def new_axes(
    width: float,
    height: float,
    title: str = "",
    layout: Literal["constrained", "compressed"] = "constrained",
) -> tuple[Figure, Axes]:
    """A figure as `new` with one set of axes."""
    figure = new(width, height, title, layout)
    axes = figure.add_subplot()
    finish(axes)
    return figure, axes


def finish(axes: Axes) -> None:
    """Spines, ticks and a pale grid under the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(color="0.9", linewidth=0.6)
    # Ticks are made when they are drawn, when the style may no longer be set.
    axes.tick_params(labelsize=SMALL, length=3, width=0.7)
    axes.tick_params(which="minor", length=1.5, width=0.5)


def letter(panels: Sequence[Axes]) -> None:
    """Names panels a, b, c, ... at their upper left; a single panel needs no name."""
    for axes, name in zip(panels, "abcdefgh", strict=False):
        if len(panels) > 1:
            axes.set_title(name, loc="left", fontweight="bold")


def colours(n: int) -> list[Any]:
    """n colours: of Okabe and Ito for up to 7, from viridis for more."""
    if n <= len(PALETTE):
        return list(PALETTE[:n])
    return list(matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, n)))


def markers(n: int) -> list[str]:
    """n markers, which repeat after ten."""
    return [MARKERS[k % len(MARKERS)] for k in range(n)]


def points(colour: Any) -> dict[str, Any]:
    """Keywords of points with error bars."""
    return {"color": colour, "marker": "o", "capsize": 2, "elinewidth": 1, "linestyle": "none"}


def hollow(colour: Any, marker: str) -> dict[str, Any]:
    """Keywords of a marker that is only an outline."""
    return {"color": colour, "marker": marker, "markerfacecolor": "white"}


def percent_bars(frame: Any) -> np.ndarray:
    """Lengths of error bars below and above the mean, in percent: [2, n]."""
    below, above = frame["mean"] - frame["low"], frame["high"] - frame["mean"]
    return 100 * np.array([below, above], dtype=np.float64)


def legend_right(axes: Axes, title: str | None = None) -> None:
    """A legend to the right of the axes, where it covers no data."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, title=title)


def log_axis(axes: Axes, values: Sequence[float] | Column) -> None:
    """A log axis whose ticks are plain numbers, also where `values` span less than a decade."""
    axes.set_xscale("log")
    wide = max(values) > 4 * min(values)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def text(value: Any) -> str:
    """A number in its shortest form, anything else as it is."""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def data_set(name: str) -> str:
    """The name of a data set as papers spell it, or as it is."""
    return DATA_SETS.get(name, name)


def network(config: Any) -> str:
    """The network of a configuration and its data, as a title says them."""
    name = NETWORKS.get(config.model.name, config.model.name)
    data = f"{data_set(config.data.name)} at {config.data.image_size} pixels"
    return f"{name} {config.model.width_multiplier:g}, {data}"


def number(value: float, form: str) -> str:
    """A formatted number with a minus sign as long as a plus, and without one at zero."""
    shown = form.format(value)
    if not shown.strip("+-0."):
        shown = shown.lstrip("+-")
    return shown.replace("-", "\u2212")
