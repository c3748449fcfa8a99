"""Means with their intervals, one below the other, and their values next to them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mobilenet.analysis import stats
from mobilenet.analysis.plots import style
from mobilenet.analysis.stats import Frame

ROW = 0.19  # inches: what a row needs at 7 points


@style.styled
def intervals(table: Frame, *, label: str = style.TOP1, title: str = "") -> Figure:
    """Accuracies of variants as points with their intervals, one below the other.

    Args:
      table: columns variant, mean, low, high (fractions; NaN ends draw no bar, and ends are cut to
        [0, 1]), and optionally n (seeds), heading (written above the rows that share it) and
        baseline (boolean: what the others are compared with, drawn hollow with a dashed line
        through its mean). Drawn in the table's order.
      label: of the axis, with its unit; values are multiplied by 100.
      title: of the figure: what was measured on which data.

    Raises:
      ValueError: a column that is missing.
    """
    stats.require(table, ["variant", "mean", "low", "high"])
    table = table.assign(low=table["low"].clip(lower=0), high=table["high"].clip(upper=1))
    figure, axes, places, edges = _rows(table, "variant", title)
    marked = np.zeros(len(table), dtype=bool)
    if "baseline" in table.columns:
        marked = table["baseline"].to_numpy(dtype=bool)
    whole = len({edges[k] for k in np.flatnonzero(marked)}) < 2
    for k in np.flatnonzero(marked):
        ends = axes.get_ylim() if whole else edges[k]
        line = 2 * [100 * table["mean"].iloc[k]]
        axes.plot(line, ends, color=style.GREY, linestyle="--", linewidth=0.8, zorder=1)
    dots(axes, table[~marked], places[~marked], {})
    dots(axes, table[marked], places[marked], {"markerfacecolor": "white"})
    write_values(axes, places, _percent(table, "{:.1f}"), f"{label}{_heading(table)}")
    axes.set_xlabel(label)
    return figure


@style.styled
def differences(
    table: Frame, *, label: str = "difference of top-1, percentage points", title: str = ""
) -> Figure:
    """Differences of accuracy with their intervals, one below the other, and a line at zero.

    Args:
      table: columns comparison ("A against B", its difference being A - B), mean, low, high
        (fractions; NaN ends draw no bar), and optionally n (common seeds), heading (written above
        the rows that share it) and margin (a fraction: accuracies that differ by less count as
        equal, a grey box around zero; NaN draws none). Drawn in the table's order.
      label: of the axis, with its unit; values are multiplied by 100.
      title: of the figure: what was measured on which data.

    Raises:
      ValueError: a column that is missing.
    """
    stats.require(table, ["comparison", "mean", "low", "high"])
    figure, axes, places, _ = _rows(table, "comparison", title)
    axes.axvline(0, color="0.2", linewidth=0.8, zorder=1)
    if "margin" in table.columns:
        known = table["margin"].notna().to_numpy()
        margin = 100 * table["margin"][known]
        axes.barh(places[known], 2 * margin, left=-margin, height=0.7, color="0.85", zorder=0)
    dots(axes, table, places, {})
    write_values(axes, places, _percent(table, "{:+.1f}"), f"points{_heading(table)}")
    axes.set_xlabel(label)
    return figure


def dots(axes: Axes, table: Frame, places: np.ndarray, marker: dict[str, Any]) -> None:
    """Points with bars at these rows, in percent."""
    keywords = {**style.points(style.PALETTE[0]), **marker}
    axes.errorbar(100 * table["mean"], places, xerr=style.percent_bars(table), **keywords)


def arrange(groups: Sequence[str] | None, rows: int) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Where rows and headings stand: every group has its heading above its rows.

    Args:
      groups: of each row; rows of one group follow each other. None: no headings.
      rows: their number.

    Returns:
      The place of each row, and (place, text) of each heading.
    """
    places, headings = [], []
    for k in range(rows):
        if groups is not None and (k == 0 or groups[k] != groups[k - 1]):
            headings.append((len(places) + len(headings), groups[k]))
        places.append(len(places) + len(headings))
    return np.array(places, dtype=int), headings


def name_rows(
    axes: Axes, names: Sequence[str], places: np.ndarray, headings: Sequence[tuple[int, str]]
) -> None:
    """Names rows and headings at the vertical axis, from the top."""
    named = sorted([*zip(places.tolist(), names, strict=True), *headings])
    axes.set_yticks([place for place, _ in named], [name for _, name in named])
    bold = {place for place, _ in headings}
    for (place, _), tick in zip(named, axes.get_yticklabels(), strict=True):
        if place in bold:
            tick.set_fontweight("bold")
            if place:
                axes.axhline(place - 0.5, color="0.8", linewidth=0.6)
    axes.set_ylim(len(named) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def write_values(axes: Axes, places: np.ndarray, texts: Sequence[str], heading: str) -> None:
    """A column of texts to the right of the axes, under its heading."""
    rows = [(float(place), text) for place, text in zip(places, texts, strict=True)]
    for place, text in [(-0.85, heading), *rows]:
        axes.text(
            1.015,
            place,
            text,
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=style.SMALL,
            color=style.GREY if place < 0 else "black",
        )


def with_range(mean: float, low: float, high: float, form: str) -> str:
    """ "mean [low, high]", or the mean alone where there are no ends."""
    known = np.isfinite([low, high]).all()
    ends = f" [{style.number(low, form)}, {style.number(high, form)}]" if known else ""
    return style.number(mean, form) + ends


def _percent(table: Frame, form: str) -> list[str]:
    numbers = (100 * table[["mean", "low", "high"]]).to_numpy(dtype=float)
    return [with_range(mean, low, high, form) for mean, low, high in numbers]


def _seeds(table: Frame) -> list[int] | None:
    return [int(n) for n in table["n"]] if "n" in table.columns else None


def _heading(table: Frame) -> str:
    """What the ends of the values are, and the number of seeds where all rows share it."""
    counts = set(_seeds(table) or ())
    shared = f", n = {counts.pop()}" if len(counts) == 1 else ""
    return (" [95 % interval]" if table["low"].notna().any() else "") + shared


def _rows(
    table: Frame, column: str, title: str
) -> tuple[Figure, Axes, np.ndarray, list[tuple[float, float]]]:
    """A figure with a named row for each of the table's, their places, and their groups' edges."""
    names = [style.text(name) for name in table[column]]
    seeds = _seeds(table)
    if seeds is not None and len(set(seeds)) > 1:
        names = [f"{name} (n = {n})" for name, n in zip(names, seeds, strict=True)]
    groups = [str(group) for group in table["heading"]] if "heading" in table.columns else None
    places, headings = arrange(groups, len(names))
    # Long names leave the axes their width.
    longest = max([*map(len, names), *(len(text) for _, text in headings)], default=0)
    width = min(style.PAGE + 1, max(5.2, 4.2 + 0.058 * longest))
    figure, axes = style.new_axes(width, 0.85 + ROW * (len(names) + len(headings)), title)
    name_rows(axes, names, places, headings)
    starts = [place for place, _ in headings] or [0]
    ends = [*starts[1:], len(names) + len(headings)]
    spans = [(start - 0.5, end - 0.5) for start, end in zip(starts, ends, strict=True)]
    edges = [next(span for span in spans if span[0] < place < span[1]) for place in places]
    return figure, axes, places, edges
