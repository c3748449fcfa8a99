"""All figures: nothing cut off or written over, titles, colours; files are the same bytes again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import (
    BITS,
    BUDGETS,
    COMPARISONS,
    COUNTS,
    LAYERS,
    OURS,
    PUBLISHED,
    REFERENCE,
    SENSITIVITY,
    SUMMARY,
    VARIANTS,
)  # fmt: skip
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from mobilenet.analysis import plots
from mobilenet.analysis.plots import labels, style
from mobilenet.analysis.runs import load_runs

LOGS = Path(__file__).parents[2] / "experiments" / "results" / "logs" / "baselines"


def curves() -> Figure:
    runs = load_runs(LOGS)
    return plots.learning_curves(runs.metrics, runs.frame, "data.name")


FIGURES: dict[str, Callable[[], Figure]] = {
    "pareto": lambda: plots.pareto(SUMMARY, "macs", label="width", published=REFERENCE),
    "learning_curves": curves,
    "budgets": lambda: plots.budgets(
        BUDGETS, ["macs", "latency_ms"], named=["macs"], front="dense"
    ),
    "shares": lambda: plots.shares(BUDGETS[["macs", "mean"]], ylabel="row", xlabel="share, %"),
    "tensor_sizes": lambda: plots.tensor_sizes(LAYERS, {"peak": 5.0}, ylabel="kB"),
    "accuracy_against_bits": lambda: plots.accuracy_against_bits(BITS),
    "sensitivity": lambda: plots.sensitivity(SENSITIVITY),
    "confusion_matrix": lambda: plots.confusion_matrix(COUNTS, ["cat", "dog", "bird"]),
    "figure5": lambda: plots.figure5(PUBLISHED, OURS),
    "intervals": lambda: plots.intervals(VARIANTS),
    "differences": lambda: plots.differences(COMPARISONS),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_made_again_is_the_same_bytes(tmp_path: Path, name: str):
    first, again = tmp_path / "new" / "1.svg", tmp_path / "new" / "2.svg"
    plots.save(FIGURES[name](), first)
    plots.save(FIGURES[name](), again)
    content = first.read_bytes()
    assert content == again.read_bytes() and len(content) > 5000
    assert b"Matplotlib v" not in content and b"dc:date" not in content


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_a_figure_saved_again_is_the_same_bytes(tmp_path: Path, ending: str):
    # Its legend beside the axes lets a layout engine move both a little with every drawing.
    figure = FIGURES["pareto"]()
    first, again = tmp_path / f"1.{ending}", tmp_path / f"2.{ending}"
    plots.save(figure, first)
    plots.save(figure, again)
    content = first.read_bytes()
    assert content == again.read_bytes() and b"Matplotlib" not in content


def test_save_refuses_other_endings(tmp_path: Path):
    with pytest.raises(ValueError, match=r"'.pdf'; figures are written as .svg or .png"):
        plots.save(Figure(), tmp_path / "a.pdf")


def test_text_in_a_file_is_text(tmp_path: Path):
    plots.save(plots.differences(COMPARISONS, title="Three differences"), tmp_path / "a.svg")
    content = (tmp_path / "a.svg").read_text()
    for text in ("Three differences", "linear against relu6", "difference of top-1"):
        assert f">{text}" in content
    assert len(content) < 20_000


def texts_of(figure: Figure) -> list[Any]:
    """Everything that is written in a figure; of the ticks only those within their axes."""
    found: list[Any] = list(figure.texts)
    every: Any = figure.axes
    for axes in every:
        found += [*axes.texts, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            found += [tick.label1 for tick in axis._update_ticks()]
    legends = [*figure.legends, *(axes.get_legend() for axes in every)]
    found += [text for legend in legends if legend is not None for text in legend.get_texts()]
    return [text for text in found if text.get_text() and text.get_visible()]


@pytest.mark.parametrize("name", FIGURES)
def test_axes_are_labelled_and_nothing_is_cut_off_or_written_over(name: str):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    assert all(axes.get_xlabel() or axes.get_ylabel() for axes in figure.axes)
    boxes = [(text.get_window_extent(), text.get_text()) for text in texts_of(figure)]
    for k, (box, text) in enumerate(boxes):
        assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1, text
        assert box.y0 >= -1 and box.y1 <= figure.bbox.y1 + 1, text
        for other, what in boxes[:k]:
            assert not box.shrunk(0.9, 0.9).overlaps(other), f"{text} lies on {what}"
    for axes in figure.axes:
        legend = axes.get_legend()
        if legend is not None:
            beyond = legend.get_window_extent().x0 >= axes.get_window_extent().x1
            assert beyond or legend.get_window_extent().y0 >= axes.get_window_extent().y1


TITLED: dict[str, Callable[[str], Figure]] = {
    "pareto": lambda text: plots.pareto(SUMMARY, "macs", label="width", title=text),
    "budgets": lambda text: plots.budgets(BUDGETS, ["macs"], named=[], title=text),
    "bits": lambda text: plots.accuracy_against_bits(BITS, title=text),
    "tensor_sizes": lambda text: plots.tensor_sizes(LAYERS, {}, ylabel="kB", title=text),
    "intervals": lambda text: plots.intervals(VARIANTS, title=text),
    "differences": lambda text: plots.differences(COMPARISONS, title=text),
    "confusion": lambda text: plots.confusion_matrix(COUNTS, ["a", "b", "c"], title=text),
}


@pytest.mark.parametrize("name", TITLED)
def test_titles_are_broken_into_lines_and_stand_above_everything(name: str):
    figure = TITLED[name]("Two hundred networks and what each of them costs, " * 3)
    figure.draw_without_rendering()
    (title,) = [text for text in figure.texts if text.get_text().startswith("Two hundred")]
    box = title.get_window_extent()
    assert "\n" in title.get_text() and 0 <= box.x0 and box.x1 <= figure.bbox.x1
    lengths = [len(line) for line in title.get_text().split("\n")]
    assert min(lengths) > max(lengths) / 2
    others = [text.get_window_extent() for text in texts_of(figure) if text is not title]
    assert box.y0 >= max(other.y1 for other in others) - 2


def test_labels_keep_clear_of_points_lines_and_each_other():
    figure, axes = style.new_axes(4, 3)
    axes.plot([0, 1], [0.5, 0.5], "o-")  # a line to the right of the first point
    labels.place(axes, [0, 1, 1], [0.5, 0.5, 0.5], ["first", "one", "other"], ["k"] * 3)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
    height = axes.transData.transform((0, 0.5))[1]
    assert not any(box.y0 < height < box.y1 and box.x1 > axes.bbox.x0 for box in boxes[:1])
    figure.draw_without_rendering()
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


@pytest.mark.parametrize(
    ("value", "form", "shown"),
    [(-0.04, "{:+.1f}", "0.0"), (0.04, "{:+.1f}", "0.0"), (-1.25, "{:+.2f}", "\u22121.25"),
     (3.0, "{:+.1f}", "+3.0"), (0.0, "{:.0f}", "0"), (10.0, "{:.1f}", "10.0")],
)  # fmt: skip
def test_numbers_have_a_minus_sign_and_no_negative_zero(value: float, form: str, shown: str):
    assert style.number(value, form) == shown


# Linear RGB as readers without red or green cones see it (Machado et al. 2009, severity 1).
SIGHT = {
    "full": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
}  # fmt: skip


@pytest.mark.parametrize("sight", SIGHT)
def test_colour_blind_readers_tell_colours_apart(sight: str):
    colours = np.array([to_rgb(colour) for colour in style.colours(7)])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ SIGHT[sight].T, 0, 1)
    seen = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    # The first seven of matplotlib's own colours come as close as 0.05.
    assert distances[~np.eye(7, dtype=bool)].min() > 0.19
    assert len({to_hex(colour) for colour in style.colours(12)}) == 12


def test_keep_writes_only_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    figure = Figure()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(plots.FIGURES_VARIABLE, raising=False)
    assert plots.keep(figure, "00_nothing") is figure
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv(plots.FIGURES_VARIABLE, str(tmp_path / "figures"))
    assert plots.keep(figure, "00_black") is figure
    assert (tmp_path / "figures" / "00_black.svg").read_text().rstrip().endswith("</svg>")
