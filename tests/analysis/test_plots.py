"""Plots: what the artists hold equals the frames; files are the same bytes again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from mobilenet.analysis import plots, stats
from mobilenet.analysis.plots import labels, style
from mobilenet.analysis.runs import load_runs

LOGS = Path(__file__).parents[2] / "experiments" / "results" / "logs" / "baselines"

SUMMARY = pd.DataFrame(
    {
        "width": [1.0, 0.5, 0.75, 0.25],
        "macs": [90e6, 30e6, 60e6, 10e6],
        "mean": [0.76, 0.71, 0.70, 0.60],
        "low": [0.75, 0.68, 0.68, np.nan],
        "high": [0.77, 0.73, 0.72, np.nan],
    }
)
REFERENCE = pd.DataFrame({"width": [0.5], "macs": [28e6], "mean": [0.73]})
BITS = pd.DataFrame(
    {
        "bits": [8, 4, 2, 8, 4],
        "method": ["QAT", "QAT", "QAT", "PTQ", "PTQ"],
        "mean": [0.71, 0.69, 0.50, 0.70, 0.55],
        "low": [0.70, 0.68, np.nan, 0.69, 0.54],
        "high": [0.72, 0.70, np.nan, 0.71, 0.56],
    }
)
PUBLISHED = pd.DataFrame(
    {
        "width": [1.0, 1.0, 0.5],
        "resolution": [224, 96, 224],
        "macs_m": [300, 56, 97],
        "top1": [71.8, 60.3, 65.4],
    }
)
OURS = pd.DataFrame(
    {
        "width": [1.4, 1.0],
        "resolution": [224, 224],
        "macs_m": [582.0, 300.8],
        "top1": [74.0, 71.0],
        "low": [73.5, 70.0],
        "high": [74.5, 72.0],
    }
)
VARIANTS = pd.DataFrame(
    {
        "variant": ["identity", "relu6", "none"],
        "mean": [0.71, 0.69, 0.66],
        "low": [0.70, 0.67, np.nan],
        "high": [0.72, 0.71, np.nan],
        "n": [3, 3, 1],
        "baseline": [True, False, False],
    }
)
COMPARISONS = pd.DataFrame(
    {
        "comparison": ["linear against relu6", "t = 10 against t = 6", "SE against none"],
        "mean": [0.05, -0.01, 0.02],
        "low": [0.03, -0.015, np.nan],
        "high": [0.07, -0.005, np.nan],
        "margin": [np.nan, 0.01, np.nan],
        "n": [3, 3, 1],
    }
)
LAYERS = pd.DataFrame(
    {
        "layer": [
            "stem",
            *(f"blocks_{k}_0/{role}" for k in range(4) for role in ("expand", "project")),
        ],
        "kind": ["outside", *4 * ["inside", "between"]],
        "size": [5, 4, 1, 3, 1, 4, 1, 2, 1],
    }
)
SENSITIVITY = pd.DataFrame(
    [
        (f"{name}/conv/weights", bits, 10.0**-bits * place)
        for place, name in enumerate(LAYERS["layer"], 1)
        for bits in (4, 8)
    ],
    columns=pd.Index(["site", "bits", "divergence"]),
)
BUDGETS = SUMMARY.rename(columns={"width": "label"}).assign(
    kind=["dense", "sparse", "dense", "dense"], latency_ms=[3.0, np.nan, 2.0, 1.0]
)
COUNTS = np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]])


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


def axes_of(figure: Figure) -> Axes:
    return figure.axes[0]


def lines(axes: Axes) -> dict[str, np.ndarray]:
    """Label -> points of every labelled line and every labelled row of error bars."""
    found: dict[str, Any] = {str(line.get_label()): line.get_xydata() for line in axes.lines}
    for container in axes.containers:
        found[str(container.get_label())] = container[0].get_xydata()
    return found


def bars(axes: Axes) -> np.ndarray:
    """Ends of all error bars, [bars, 2 ends, 2 coordinates], without those that are not drawn."""
    segments: Any = [s for c in axes.collections for s in getattr(c, "get_segments", list)()]
    return np.array([s for s in segments if len(s) == 2 and np.isfinite(s).all()])


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


def test_pareto():
    axes = axes_of(plots.pareto(SUMMARY, "macs", label="width", published=REFERENCE))
    drawn = lines(axes)
    assert drawn["ours"] == pytest.approx(np.array([[90, 76], [30, 71], [60, 70], [10, 60]]))
    assert drawn["front of ours"] == pytest.approx(np.array([[10, 60], [30, 71], [90, 76]]))
    assert drawn["published"] == pytest.approx(np.array([[28, 73]]))
    ends = bars(axes)[:, :, 1]
    assert ends == pytest.approx(np.array([[75, 77], [68, 73], [68, 72]]))
    assert [t.get_text() for t in axes.texts] == ["1", "0.5", "0.75", "0.25", "0.5"]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "multiply-adds per image, millions"
    assert axes.get_ylabel() == "top-1, %"


def test_pareto_takes_other_names_for_its_points():
    names = ("dense", "sparse")
    figure = plots.pareto(SUMMARY, "macs", label="width", published=REFERENCE, names=names)
    assert set(lines(axes_of(figure))) >= {"dense", "front of dense", "sparse"}
    assert {"ours", "published"}.isdisjoint(lines(axes_of(figure)))


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


def test_pareto_takes_any_cost_and_refuses_what_a_log_axis_cannot_show():
    renamed = SUMMARY.rename(columns={"macs": "energy_mj"})
    axes = axes_of(plots.pareto(renamed, "energy_mj", label="width"))
    assert axes.get_xlabel() == "energy_mj" and lines(axes)["ours"][0, 0] == 90e6
    with pytest.raises(ValueError, match=r"rows \[1\] have no mean, or no positive macs"):
        plots.pareto(SUMMARY.assign(macs=[1.0, 0.0, 2.0, 3.0]), "macs", label="width")
    with pytest.raises(ValueError, match="no column energy; it has width"):
        plots.pareto(SUMMARY, "energy", label="width")


def test_budgets_have_a_panel_a_cost_and_a_line_through_what_others_are_held_against():
    table = BUDGETS
    figure = plots.budgets(table, ["macs", "latency_ms"], named=["macs"], front="dense")
    macs: Any
    latency: Any
    macs, latency = figure.axes
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "multiply-adds per image, millions",
        "latency of one image, ms",
    ]
    drawn = {c.get_label(): c.lines[0].get_xydata() for c in macs.containers}
    np.testing.assert_allclose(drawn["sparse"], [(30, 71)])
    # Width 0.5 is more accurate and cheaper, but of another kind: the front is of the first.
    (front,) = [line for line in macs.lines if line.get_linestyle() == "-"]
    np.testing.assert_allclose(front.get_xydata(), [(10, 60), (60, 70), (90, 76)])
    assert sum(len(c.lines[0].get_xydata()) for c in latency.containers) == 3
    assert (len(macs.texts), len(latency.texts)) == (4, 0)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dense", "sparse"]
    ends = table.assign(latency_ms_low=0.5, latency_ms_high=4.0)
    (axes,) = plots.budgets(ends, ["latency_ms"], named=[]).axes
    assert {(0.5, 4.0)} == {tuple(bar[:, 0]) for bar in bars(axes) if bar[0, 1] == bar[1, 1]}
    with pytest.raises(ValueError, match="no column bytes"):
        plots.budgets(table, ["bytes"], named=[])
    with pytest.raises(ValueError, match="no positive macs"):
        plots.budgets(table.assign(macs=0.0), ["macs"], named=[])


def recorded(values: dict[str, list[float]]) -> pd.DataFrame:
    rows = [
        (run, 10 * k, float(k), "validation", "top1", value)
        for run, column in values.items()
        for k, value in enumerate(column, 1)
    ]
    names = ["run", "step", "epoch", "split", "metric", "value"]
    return pd.DataFrame(rows, columns=pd.Index(names))


def test_learning_curves_are_means_and_intervals_over_seeds():
    metrics = recorded({"a0": [0.5, 0.7], "a1": [0.6, 0.8], "b0": [0.2, 0.3], "other": [0.9, 0.9]})
    frame = pd.DataFrame(
        {"seed": [0, 1, 0], "model.se_ratio": [0.25, 0.25, None]},
        index=pd.Index(["a0", "a1", "b0"]),
    )
    axes = axes_of(plots.learning_curves(metrics, frame, "model.se_ratio"))
    drawn = lines(axes)
    assert drawn.keys() == {"0.25 (n = 2)", "None (n = 1)"}
    assert drawn["0.25 (n = 2)"] == pytest.approx(np.array([[1, 55], [2, 75]]))
    assert drawn["None (n = 1)"] == pytest.approx(np.array([[1, 20], [2, 30]]))
    # One band: a single seed has none.
    (band,) = axes.collections
    corners = np.asarray(band.get_paths()[0].vertices)
    expected = stats.mean_interval([0.5, 0.6])
    at_first = corners[corners[:, 0] == 1][:, 1]
    assert expected.low < 0 and at_first.min() == 0
    assert expected.high > 1 and at_first.max() == 100
    assert axes.get_ylabel() == "validation top-1, %"


@pytest.mark.parametrize(("metric", "least", "most"), [("loss", 0, np.inf), ("top1", 0, 100)])
def test_bands_end_where_the_metric_does(metric: str, least: float, most: float):
    metrics = recorded({"a": [0.01, 1.0], "b": [0.9, 0.5]}).assign(metric=metric)
    frame = pd.DataFrame({"seed": [0, 1], "x": 0}, index=pd.Index(["a", "b"]))
    axes = axes_of(plots.learning_curves(metrics, frame, "x", metric))
    (band,) = axes.collections
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert heights.min() >= least and heights.max() <= most
    assert heights.min() == least  # it would go on below without an end


def test_a_single_line_has_no_legend():
    metrics = recorded({"a": [0.5], "b": [0.6]})
    frame = pd.DataFrame({"seed": [0, 1], "x": [1, 2]}, index=pd.Index(["a", "b"]))
    assert axes_of(plots.learning_curves(metrics, frame.iloc[:1], "x")).get_legend() is None
    assert axes_of(plots.learning_curves(metrics, frame, "x")).get_legend() is not None


def test_learning_curves_keep_the_order_of_categories():
    metrics = recorded({"a": [0.5], "b": [0.6], "c": [0.7], "d": [0.8]})
    variants = pd.Categorical(
        ["t = 10", "t = 2", None, "t = 1"], ["t = 1", "t = 2", "t = 5", "t = 10"]
    )
    frame = pd.DataFrame({"seed": 0, "variant": variants}, index=pd.Index(["a", "b", "c", "d"]))
    axes = axes_of(plots.learning_curves(metrics, frame, "variant"))
    shown = ["t = 1 (n = 1)", "t = 2 (n = 1)", "t = 10 (n = 1)", "None (n = 1)"]
    assert list(lines(axes)) == shown
    assert lines(axes)["t = 10 (n = 1)"] == pytest.approx(np.array([[1, 50]]))
    # Without categories texts are in the alphabet's order.
    plain = axes_of(plots.learning_curves(metrics, frame.astype({"variant": object}), "variant"))
    assert list(lines(plain)) == [shown[0], shown[2], shown[1], shown[3]]


def test_learning_curves_of_the_committed_logs():
    runs = load_runs(LOGS)
    digits = runs.frame[runs.frame["data.name"] == "digits"]
    axes = axes_of(plots.learning_curves(runs.metrics, digits, "seed", "loss", "train"))
    assert axes.get_ylabel() == "training cross-entropy, nats"
    run = digits.index[0]
    rows = [r for r in runs.metrics.itertuples(index=False) if r.run == run and r.split == "train"]
    expected = [(r.epoch, r.value) for r in rows if r.metric == "loss"]
    assert lines(axes)["0 (n = 1)"] == pytest.approx(np.array(expected))


def test_learning_curves_refuse_mixed_runs_and_unknown_metrics():
    metrics = recorded({"a0": [0.5], "b0": [0.6]})
    frame = pd.DataFrame({"seed": [0, 0], "x": [1, 1]}, index=pd.Index(["a0", "b0"]))
    with pytest.raises(ValueError, match="x=1 has a seed twice among a0, b0"):
        plots.learning_curves(metrics, frame, "x")
    with pytest.raises(ValueError, match="no train loss; they have validation top1"):
        plots.learning_curves(metrics, frame, "seed", "loss", "train")
    with pytest.raises(ValueError, match="no validation top1; they have no metrics"):
        plots.learning_curves(metrics, frame.rename(index={"a0": "c0", "b0": "c1"}), "seed")


def test_accuracy_against_bits():
    axes = axes_of(plots.accuracy_against_bits(BITS))
    drawn = lines(axes)
    assert drawn["PTQ"] == pytest.approx(np.array([[4, 55], [8, 70]]))
    assert drawn["QAT"] == pytest.approx(np.array([[2, 50], [4, 69], [8, 71]]))
    assert sorted(bars(axes)[:, 0, 1]) == pytest.approx([54, 68, 69, 70])
    assert list(axes.get_xticks()) == [2, 4, 8]
    assert {text.get_text() for text in axes.texts} == {"50.0", "69.0", "71.0", "55.0", "70.0"}
    assert axes.get_xlabel() == "bits per weight" and axes.get_ylabel() == "top-1, %"
    assert axes_of(plots.accuracy_against_bits(BITS, label="loss, %")).get_ylabel() == "loss, %"


def test_confusion_matrix_shows_shares_and_counts():
    axes = axes_of(plots.confusion_matrix(COUNTS, ["cat", "dog", "bird"]))
    shown = np.asarray(axes.images[0].get_array())
    assert shown == pytest.approx(np.array([[80, 20, 0], [10, 90, 0], [0, 0, 0]]))
    texts = {t.get_position(): t.get_text() for t in axes.texts}
    assert texts == {(0, 0): "8", (1, 0): "2", (0, 1): "1", (1, 1): "9"}
    assert [t.get_text() for t in axes.get_yticklabels()] == ["cat", "dog", "bird"]


def test_confusion_matrix_of_many_classes_has_colours_alone():
    axes = axes_of(plots.confusion_matrix(np.eye(21), [f"class {k}" for k in range(21)]))
    assert not axes.texts and len(axes.get_xticks()) == 21
    large = axes_of(plots.confusion_matrix(np.eye(100), [f"class {k}" for k in range(100)]))
    assert len(large.get_xticks()) <= 40
    with pytest.raises(ValueError, match=r"is \(3, 3\) and there are 2 class names"):
        plots.confusion_matrix(COUNTS, ["cat", "dog"])


def test_figure5():
    axes = axes_of(plots.figure5(PUBLISHED, OURS))
    drawn = lines(axes)
    assert drawn["1.0"] == pytest.approx(np.array([[56, 60.3], [300, 71.8]]))
    assert drawn["0.5"] == pytest.approx(np.array([[97, 65.4]]))
    ours = [c[0].get_xydata().tolist() for c in axes.containers if len(c[0].get_xydata())]
    assert ours == [[[300.8, 71.0]], [[582.0, 74.0]]]
    assert bars(axes)[:, :, 1] == pytest.approx(np.array([[70, 72], [73.5, 74.5]]))
    # A width has one colour, published or ours.
    line = next(line for line in axes.lines if line.get_label() == "1.0")
    mine = next(c for c in axes.containers if c[0].get_xydata().tolist() == [[300.8, 71.0]])
    assert np.array_equal(line.get_color(), mine[0].get_color())
    assert axes.get_xscale() == "log" and "96, 224 pixels" in axes.figure.get_suptitle()
    alone = axes_of(plots.figure5(PUBLISHED))
    assert lines(alone).keys() == {"0.5", "1.0"}


def test_figure5_refuses_fractions_and_missing_columns():
    with pytest.raises(ValueError, match="takes percent"):
        plots.figure5(PUBLISHED.assign(top1=PUBLISHED["top1"] / 100))
    with pytest.raises(ValueError, match="no column width; it has resolution"):
        plots.figure5(PUBLISHED, OURS.drop(columns="width"))


def test_intervals_mark_the_baseline():
    axes = axes_of(plots.intervals(VARIANTS, label="top-1 on test, %"))
    others, baseline = (container[0] for container in axes.containers)
    assert others.get_xydata() == pytest.approx(np.array([[69, 1], [66, 2]]))
    assert baseline.get_xydata() == pytest.approx(np.array([[71, 0]]))
    faces = [to_hex(line.get_markerfacecolor()) for line in (others, baseline)]
    assert faces[1] == "#ffffff" != faces[0]
    dashed = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert np.asarray(dashed.get_xdata()).tolist() == [71.0, 71.0]
    assert bars(axes)[:, :, 0] == pytest.approx(np.array([[67, 71], [70, 72]]))
    ticks = [label.get_text() for label in axes.get_yticklabels()]
    assert ticks == ["identity (n = 3)", "relu6 (n = 3)", "none (n = 1)"]
    values = ["top-1 on test, % [95 % interval]"]
    values += ["71.0 [70.0, 72.0]", "69.0 [67.0, 71.0]", "66.0"]
    assert [text.get_text() for text in axes.texts] == values
    assert axes.get_xlabel() == "top-1 on test, %" and axes.yaxis_inverted()
    plain = axes_of(plots.intervals(VARIANTS[["variant", "mean", "low", "high"]]))
    assert not any(line.get_linestyle() == "--" for line in plain.lines)


def test_differences_stand_beside_zero_and_their_margin():
    axes = axes_of(plots.differences(COMPARISONS))
    (container,) = [c for c in axes.containers if hasattr(c, "has_xerr")]
    assert container[0].get_xydata() == pytest.approx(np.array([[5, 0], [-1, 1], [2, 2]]))
    assert bars(axes)[:, :, 0] == pytest.approx(np.array([[3, 7], [-1.5, -0.5]]))
    zero = axes.lines[0]
    assert np.asarray(zero.get_xdata()).tolist() == [0, 0]
    # One box, of the one comparison that has a margin, and behind the points.
    (box,) = axes.patches
    edges = box.get_window_extent().transformed(axes.transData.inverted())
    assert [edges.x0, edges.x1] == pytest.approx([-1, 1])
    assert round((edges.y0 + edges.y1) / 2) == 1 and box.get_zorder() < zero.get_zorder()
    ticks = [label.get_text() for label in axes.get_yticklabels()]
    assert ticks[0] == "linear against relu6 (n = 3)" and len(ticks) == 3
    assert axes.yaxis_inverted() and "percentage points" in axes.get_xlabel()
    columns = ["comparison", "mean", "low", "high"]
    plain = axes_of(plots.differences(COMPARISONS[columns]))
    assert not plain.patches and plain.get_yticklabels()[0].get_text() == "linear against relu6"
    with pytest.raises(ValueError, match="no column low; it has comparison"):
        plots.differences(COMPARISONS.drop(columns="low"))


def test_rows_with_headings_stand_below_them_and_baselines_within_them():
    table = VARIANTS.assign(heading=["one", "two", "two"], n=3, baseline=[True, True, False])
    axes = axes_of(plots.intervals(table))
    ticks = [(tick.get_text(), tick.get_fontweight()) for tick in axes.get_yticklabels()]
    assert ticks == [
        ("one", "bold"), ("identity", "normal"),
        ("two", "bold"), ("relu6", "normal"), ("none", "normal"),
    ]  # fmt: skip
    assert axes.texts[0].get_text() == "top-1, % [95 % interval], n = 3"
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    spans = [np.asarray(line.get_ydata()).tolist() for line in dashed]
    assert spans == [[-0.5, 1.5], [1.5, 4.5]]
    others, baselines = (container[0] for container in axes.containers)
    assert others.get_xydata().tolist() == [[66, 4]]
    assert baselines.get_xydata()[:, 1].tolist() == [1, 3]


def test_intervals_of_accuracies_end_at_0_and_100_percent():
    axes = axes_of(plots.intervals(VARIANTS.assign(low=[-0.1, 0.67, np.nan], high=[1.1, 0.7, 1])))
    assert bars(axes)[:, :, 0].tolist() == pytest.approx(np.array([[67, 70], [0, 100]]))
    assert axes.texts[1].get_text() == "71.0 [0.0, 100.0]"


@pytest.mark.parametrize(
    ("value", "form", "shown"),
    [(-0.04, "{:+.1f}", "0.0"), (0.04, "{:+.1f}", "0.0"), (-1.25, "{:+.2f}", "\u22121.25"),
     (3.0, "{:+.1f}", "+3.0"), (0.0, "{:.0f}", "0"), (10.0, "{:.1f}", "10.0")],
)  # fmt: skip
def test_numbers_have_a_minus_sign_and_no_negative_zero(value: float, form: str, shown: str):
    assert style.number(value, form) == shown


def test_long_names_leave_the_axes_their_width():
    long = COMPARISONS.assign(comparison="between bottlenecks against between expansions")
    widths = []
    for table in (COMPARISONS, long):
        figure = plots.differences(table)
        figure.draw_without_rendering()
        axes = axes_of(figure)
        widths.append(axes.get_window_extent().width / figure.dpi)
        label = axes.xaxis.get_label().get_window_extent()
        assert label.x0 >= 0 and label.x1 <= figure.bbox.x1
    assert min(widths) > 2.5


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
