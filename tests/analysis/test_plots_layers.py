"""Figures of layers and of step times: what the artists hold, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mobilenet.analysis import plots
from mobilenet.report import rows

SENSITIVITY = pd.DataFrame(
    {
        "site": [
            f"{name}/conv/weights"
            for name in ("stem", "blocks_0_0/depthwise", "head")
            for _ in "48"
        ],
        "bits": [4, 8, 4, 8, 4, 8],
        "divergence": [0.2, 0.001, 0.05, 0.0, 0.01, 0.002],
    }
)


def test_shares_fill_100_percent_in_every_row():
    table = pd.DataFrame({"stem": [1, 0], "head": [3, 5]}, index=[0.5, 1.0])
    figure = plots.shares(table, ylabel="width", xlabel="MACs, %")
    bars: Any = figure.axes[0].containers
    widths = np.array([[bar.get_width() for bar in segment] for segment in bars])
    np.testing.assert_allclose(widths, [[25, 0], [75, 100]])
    starts = np.array([[bar.get_x() for bar in segment] for segment in bars])
    np.testing.assert_allclose(starts, [[0, 0], [25, 0]])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0.5", "1.0"]
    legend: Any = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["stem", "head"]
    # A segment without room has no digits.
    assert [text.get_text() for text in figure.axes[0].texts] == ["25", "75", "100"]


@pytest.mark.parametrize("amounts", [[[1, -1]], [[0, 0]], [[1, float("nan")]], []])
def test_shares_refuses_what_has_no_share(amounts: list[list[float]]):
    with pytest.raises(ValueError, match="missing or negative amount"):
        plots.shares(pd.DataFrame(amounts), ylabel="", xlabel="")


def test_tensor_sizes_draws_a_bar_for_each_layer_and_a_line_for_each_limit():
    names = ["stem", "blocks_0_0/expand", "blocks_0_0/project", "head", "classifier"]
    kinds = ["outside", "inside", "between", "outside", "outside"]
    table = pd.DataFrame({"layer": names, "kind": kinds, "size": [3, 4, 1, 2, 1]})
    figure = plots.tensor_sizes(table, {"peak, kB": 1500.0, "bound": 3.0}, ylabel="kB")
    axes: Any = figure.axes[0]
    bars = [bar for container in axes.containers for bar in container]
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in bars}
    assert heights == {0: 3, 1: 4, 2: 1, 3: 2, 4: 1}
    assert [np.asarray(line.get_ydata())[0] for line in axes.lines] == [1500, 3]
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown[:2] == ["peak, kB: 1,500", "bound: 3"]
    # A name for each block, below the middle of its layers; others that follow each other share it.
    assert axes.get_xticks().tolist() == [0, 1.5, 3.5]
    ticks = [text.get_text() for text in axes.get_xticklabels()]
    assert ticks == ["\nstem", "0.0", "\nhead,\nclassifier"]
    with pytest.raises(ValueError, match="no layer"):
        plots.tensor_sizes(table.head(0), {}, ylabel="kB")


def test_sensitivity_keeps_the_order_of_the_layers():
    axes: Any = plots.sensitivity(SENSITIVITY).axes[0]
    lines = {str(line.get_label()): line.get_xydata() for line in axes.lines}
    assert lines["_4"] == pytest.approx(np.array([[0, 0.2], [1, 0.05], [2, 0.01]]))
    # What is 0 stands at the least that is not.
    assert lines["_8"] == pytest.approx(np.array([[0, 0.001], [1, 0.001], [2, 0.002]]))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["\nstem", "0.0", "\nhead"]
    assert [text.get_text() for text in axes.texts] == ["4 bits", "8 bits"]
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["depthwise", "other"]
    assert axes.get_yscale() == "log"
    figure = plots.sensitivity(SENSITIVITY, of="activations", network="width 0.35, digits")
    expected = "Effect of rounding the activations of one layer alone: width 0.35, digits"
    assert figure.get_suptitle() == expected


BENCHMARK = rows.read(Path(__file__).parents[2] / "experiments" / "results" / "benchmark.csv")
NAMES = {"torch": "PyTorch eager", "flax": "plain Flax", "pruned": "with masks"}


def test_steps_show_every_ratio_with_its_range_and_no_names_of_cases():
    figure = plots.steps(BENCHMARK, NAMES)
    by_batch, by_macs, ratios = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b", "c"]
    for axes in (by_batch, by_macs):  # one disturbed round does not flatten the others
        assert axes.get_xscale() == axes.get_yscale() == "log" and axes.get_ylabel()
    texts = [text.get_text() for text in ratios.texts]
    first = [row for row in BENCHMARK if row["processor"] == BENCHMARK[0]["processor"]]
    drawn = [row for row in first if row["work"] in ("train", "evaluate")]
    for name in NAMES:
        for row in (row for row in drawn if row["implementation"] == name):
            ends = f"[{float(row['ratio_low']):.2f}, {float(row['ratio_high']):.2f}]"
            assert f"{float(row['ratio']):.2f} {ends}" in texts
    named = [tick.get_text() for tick in ratios.get_yticklabels()]
    assert {"PyTorch eager", "with masks", "training, 224 px, width 0.35, batch 16"} <= set(named)
    assert not any("_" in name for name in named)


def test_steps_of_few_rows_leave_out_what_shows_nothing():
    pair = [row for row in BENCHMARK if row["case"] == "train_224_plain"]
    (axes,) = plots.steps(pair, NAMES).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()][0] == "plain Flax"
    assert plots.steps([], NAMES).axes == []
