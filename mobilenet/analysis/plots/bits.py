"""Accuracy of quantised networks against their bits."""

from matplotlib.figure import Figure

from mobilenet.analysis import stats
from mobilenet.analysis.plots import labels, style
from mobilenet.analysis.stats import Frame


@style.styled
def accuracy_against_bits(
    summary: Frame, *, label: str = style.TOP1, title: str = "", form: str = "{:.1f}"
) -> Figure:
    """Accuracy of quantised models against their bits, a line per method.

    Args:
      summary: columns bits (of a weight), method, mean, low, high (fractions; NaN ends draw no
        bar).
      label: of the vertical axis, with its unit; values are multiplied by 100.
      title: of the figure: what was measured on which data.
      form: of the values that are written at the points.

    Raises:
      ValueError: a column that is missing.
    """
    stats.require(summary, ["bits", "method", "mean", "low", "high"])
    figure, axes = style.new_axes(6.0, 3.0, title)
    methods = stats.levels(summary["method"].tolist())
    points = []
    styles = zip(methods, style.colours(len(methods)), style.markers(len(methods)), strict=True)
    for method, colour, marker in styles:
        line = summary[summary["method"] == method].sort_values("bits")
        axes.errorbar(
            line["bits"],
            100 * line["mean"],
            style.percent_bars(line),
            color=colour,
            marker=marker,
            capsize=2,
            label=style.text(method),
        )
        values = 100 * line["mean"].to_numpy(dtype=float)
        texts = [style.number(value, form) for value in values]
        points += list(zip(line["bits"], values, texts, [colour] * len(line), strict=True))
    axes.set_xticks(stats.levels(summary["bits"].tolist()))
    axes.set(xlabel="bits per weight", ylabel=label)
    axes.margins(0.1)
    style.legend_right(axes, title="method")
    labels.place(axes, *zip(*points, strict=True))
    return figure
