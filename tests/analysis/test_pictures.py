"""Image grids, feature maps and layer sizes: what the artists hold, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mobilenet.analysis import pictures
from mobilenet.train.metrics import Evaluation

RNG = np.random.default_rng(0)


def drawn(figure: Any) -> list[np.ndarray]:
    """The arrays of a figure's images, in reading order."""
    return [np.asarray(im.get_array()) for axes in figure.axes for im in axes.images]


@pytest.mark.parametrize("shape", [(5, 4, 4), (5, 4, 4, 1), (5, 4, 4, 3)])
def test_image_grid_shows_every_picture_as_it_is(shape: tuple[int, ...]):
    images = RNG.integers(0, 256, shape, dtype=np.uint8)
    figure = pictures.image_grid(images, list("abcde"), columns=2)
    expected = images[..., 0] if shape[-1] == 1 else images
    np.testing.assert_array_equal(np.stack(drawn(figure)), expected)
    assert [axes.get_title() for axes in figure.axes] == [*"abcde", ""]
    # A dim picture stays dim: the grey scale is not stretched.
    if images.ndim == 3:
        assert all(axes.images[0].get_clim() == (0, 255) for axes in figure.axes[:5])


def test_image_grid_refuses_what_it_cannot_show():
    image = np.zeros((2, 4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"float32 \[2, 4, 4\]"):
        pictures.image_grid(image.astype(np.float32))
    with pytest.raises(ValueError, match=r"\[0, 4, 4\]; give uint8"):
        pictures.image_grid(image[:0])
    with pytest.raises(ValueError, match="1 titles were given for 2 pictures"):
        pictures.image_grid(image, ["one"])
    with pytest.raises(ValueError, match="columns is 0"):
        pictures.image_grid(image, columns=0)


def test_image_grid_gives_long_titles_room():
    images = np.zeros((2, 4, 4), np.uint8)
    short, long = (pictures.image_grid(images, [title, ""]) for title in ("9", "x" * 40 + "\ny"))
    assert short.get_size_inches().tolist() == [2.5, 1.5]
    assert long.get_size_inches().tolist() == pytest.approx([6.4, 1.65])
    for figure in (short, long):  # nothing is drawn beyond the figure
        figure.draw_without_rendering()
        width = figure.bbox.width
        boxes = [axes.title.get_window_extent() for axes in figure.axes]
        assert min(box.x0 for box in boxes) >= 0 and max(box.x1 for box in boxes) <= width


def evaluation() -> Evaluation:
    """Four examples of three classes, whose index is not their row: 11 is the only mistake."""
    return Evaluation(
        index=np.array([4, 7, 11, 20]),
        label=np.array([0, 1, 2, 0], np.int32),
        loss=np.array([0.25, 0.65, 3.456, 0.25], np.float32),
        top=np.array([[0, 1, 2], [1, 0, 2], [0, 2, 1], [0, 2, 1]], np.int32),
        num_classes=3,
    )


def test_hardest_pictures_are_those_with_the_largest_loss_the_worst_first():
    shown = {index: np.full((4, 4, 1), index, np.uint8) for index in (4, 7, 11, 20)}
    figure = pictures.hardest_pictures(evaluation(), shown.__getitem__, ["a", "b", "c"], most=3)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["c → a, 3.46", "b → b, 0.65", "a → a, 0.25"]
    assert [int(image[0, 0]) for image in drawn(figure)] == [11, 7, 4]  # of equals the first


def test_hardest_pictures_break_long_titles_and_load_no_more_than_they_show():
    loaded = []

    def load(index: int) -> np.ndarray:
        loaded.append(index)
        return np.zeros((4, 4, 3), np.uint8)

    names = ["sunflowers", "tulips", "dandelion"]
    figure = pictures.hardest_pictures(evaluation(), load, names, most=1)
    assert loaded == [11]
    assert [axes.get_title() for axes in figure.axes] == ["dandelion\n→ sunflowers, 3.46"]
    # All there are, when more are asked for.
    assert len(drawn(pictures.hardest_pictures(evaluation(), load, names, most=9))) == 4


def test_hardest_pictures_refuses_nothing_to_show_and_other_names():
    picture = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match="most is 0"):
        pictures.hardest_pictures(evaluation(), lambda _: picture, ["a", "b", "c"], most=0)
    with pytest.raises(ValueError, match="2 class names were given for 3 outputs"):
        pictures.hardest_pictures(evaluation(), lambda _: picture, ["a", "b"])


def test_feature_maps_shows_the_most_varied_channels_first():
    ramp = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    stem = np.stack([0.1 * ramp, ramp, np.ones_like(ramp), 0.5 * ramp], axis=-1)
    head = RNG.normal(size=(2, 2, 2))
    figure = pictures.feature_maps({"stem": stem, "head": head}, channels=3)
    shown = drawn(figure)
    assert len(shown) == 3 + 2  # a stage with fewer channels shows all of them
    for got, channel in zip(shown[:3], (1, 3, 0), strict=True):
        np.testing.assert_array_equal(got, stem[:, :, channel])
    labels = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert labels == ["stem\n4 × 4 × 4", "head\n2 × 2 × 2"]


def test_feature_maps_refuses_batches_and_nothing():
    with pytest.raises(ValueError, match=r"endpoint stem has the shape \[1, 4, 4, 8\]"):
        pictures.feature_maps({"stem": np.zeros((1, 4, 4, 8))})
    with pytest.raises(ValueError, match="endpoints is empty"):
        pictures.feature_maps({})
    with pytest.raises(ValueError, match="channels is 0"):
        pictures.feature_maps({"stem": np.zeros((4, 4, 8))}, channels=0)


def test_shares_fill_100_percent_in_every_row():
    table = pd.DataFrame({"stem": [1, 0], "head": [3, 5]}, index=[0.5, 1.0])
    figure = pictures.shares(table, ylabel="width", xlabel="MACs, %")
    bars: Any = figure.axes[0].containers
    widths = np.array([[bar.get_width() for bar in segment] for segment in bars])
    np.testing.assert_allclose(widths, [[25, 0], [75, 100]])
    starts = np.array([[bar.get_x() for bar in segment] for segment in bars])
    np.testing.assert_allclose(starts, [[0, 0], [25, 0]])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0.5", "1.0"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["stem", "head"]
    # A segment without room has no digits.
    assert [text.get_text() for text in figure.axes[0].texts] == ["25", "75", "100"]


@pytest.mark.parametrize("amounts", [[[1, -1]], [[0, 0]], [[1, float("nan")]], []])
def test_shares_refuses_what_has_no_share(amounts: list[list[float]]):
    with pytest.raises(ValueError, match="missing or negative amount"):
        pictures.shares(pd.DataFrame(amounts), ylabel="", xlabel="")


def test_tensor_sizes_draws_a_bar_a_layer_and_a_line_a_limit():
    table = pd.DataFrame(
        {"layer": ["a", "b", "c"], "kind": ["inside", "between", "inside"], "size": [4, 1, 2]}
    )
    figure = pictures.tensor_sizes(table, {"peak": 5.0, "bound": 3.0}, ylabel="kB")
    axes: Any = figure.axes[0]
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axes.patches}
    assert heights == {0: 4, 1: 1, 2: 2}
    assert [np.asarray(line.get_ydata())[0] for line in axes.lines] == [5, 3]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="no layer"):
        pictures.tensor_sizes(table.head(0), {}, ylabel="kB")


def test_keep_writes_only_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    figure = pictures.image_grid(np.zeros((1, 4, 4), np.uint8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(pictures.FIGURES_VARIABLE, raising=False)
    assert pictures.keep(figure, "00_nothing") is figure
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv(pictures.FIGURES_VARIABLE, str(tmp_path / "figures"))
    assert pictures.keep(figure, "00_black") is figure
    assert (tmp_path / "figures" / "00_black.svg").read_text().rstrip().endswith("</svg>")
