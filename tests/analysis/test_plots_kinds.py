"""Kinds of figures: what the artists hold equals the frames, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from drawn import (
    BITS,
    BUDGETS,
    COMPARISONS,
    COUNTS,
    OURS,
    PUBLISHED,
    REFERENCE,
    SUMMARY,
    VARIANTS,
    axes_of,
    bars,
    lines,
)  # fmt: skip
from matplotlib.colors import to_hex

from mobilenet.analysis import plots, stats
from mobilenet.analysis.runs import load_runs

LOGS = Path(__file__).parents[2] / "experiments" / "results" / "logs" / "baselines"


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
