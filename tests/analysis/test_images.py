"""Image grids and feature maps: what the artists hold, and what is refused."""

from typing import Any

import numpy as np
import pytest

from mobilenet.analysis import images as figures
from mobilenet.train.metrics import Evaluation

RNG = np.random.default_rng(0)


def drawn(figure: Any) -> list[np.ndarray]:
    """The arrays of a figure's images, in reading order."""
    return [np.asarray(im.get_array()) for axes in figure.axes for im in axes.images]


@pytest.mark.parametrize("shape", [(5, 4, 4), (5, 4, 4, 1), (5, 4, 4, 3)])
def test_image_grid_shows_every_image_as_it_is(shape: tuple[int, ...]):
    images = RNG.integers(0, 256, shape, dtype=np.uint8)
    figure = figures.image_grid(images, list("abcde"), columns=2)
    expected = images[..., 0] if shape[-1] == 1 else images
    np.testing.assert_array_equal(np.stack(drawn(figure)), expected)
    assert [axes.get_title() for axes in figure.axes] == [*"abcde", ""]
    # A dim image stays dim: the grey scale is not stretched.
    if images.ndim == 3:
        assert all(axes.images[0].get_clim() == (0, 255) for axes in figure.axes[:5])


def test_image_grid_refuses_what_it_cannot_show():
    image = np.zeros((2, 4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"float32 \[2, 4, 4\]"):
        figures.image_grid(image.astype(np.float32))
    with pytest.raises(ValueError, match=r"\[0, 4, 4\]; give uint8"):
        figures.image_grid(image[:0])
    with pytest.raises(ValueError, match="1 titles were given for 2 images"):
        figures.image_grid(image, ["one"])
    with pytest.raises(ValueError, match="columns is 0"):
        figures.image_grid(image, columns=0)


def test_image_grid_gives_long_titles_room():
    images = np.zeros((2, 4, 4), np.uint8)
    short, long = (figures.image_grid(images, [title, ""]) for title in ("9", "x" * 40 + "\ny"))
    assert short.get_size_inches().tolist() == pytest.approx([1.7, 0.97])
    assert long.get_size_inches().tolist() == pytest.approx([4.96, 1.09])
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


def test_hardest_images_are_those_with_the_largest_loss_the_worst_first():
    shown = {index: np.full((4, 4, 1), index, np.uint8) for index in (4, 7, 11, 20)}
    figure = figures.hardest_images(evaluation(), shown.__getitem__, ["a", "b", "c"], most=3)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["c → a, 3.46", "b → b, 0.65", "a → a, 0.25"]
    assert [int(image[0, 0]) for image in drawn(figure)] == [11, 7, 4]  # of equals the first


def test_hardest_images_break_long_titles_and_load_no_more_than_they_show():
    loaded = []

    def load(index: int) -> np.ndarray:
        loaded.append(index)
        return np.zeros((4, 4, 3), np.uint8)

    names = ["sunflowers", "tulips", "dandelion"]
    figure = figures.hardest_images(evaluation(), load, names, most=1)
    assert loaded == [11]
    assert [axes.get_title() for axes in figure.axes] == ["dandelion\n→ sunflowers, 3.46"]
    # All there are, when more are asked for.
    assert len(drawn(figures.hardest_images(evaluation(), load, names, most=9))) == 4


def test_hardest_images_refuses_nothing_to_show_and_other_names():
    image = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match="most is 0"):
        figures.hardest_images(evaluation(), lambda _: image, ["a", "b", "c"], most=0)
    with pytest.raises(ValueError, match="2 class names were given for 3 outputs"):
        figures.hardest_images(evaluation(), lambda _: image, ["a", "b"])


def test_feature_maps_shows_the_most_varied_channels_first():
    ramp = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    stem = np.stack([0.1 * ramp, ramp, np.ones_like(ramp), 0.5 * ramp], axis=-1)
    head = RNG.normal(size=(2, 2, 2))
    figure = figures.feature_maps({"stem": stem, "head": head}, channels=3, title="A digit")
    assert figure.get_suptitle() == "A digit"
    shown = drawn(figure)
    assert len(shown) == 3 + 2  # a stage with fewer channels shows all of them
    for got, channel in zip(shown[:3], (1, 3, 0), strict=True):
        np.testing.assert_array_equal(got, stem[:, :, channel])
    labels = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert labels == ["stem\n4 × 4 × 4", "head\n2 × 2 × 2"]


def test_feature_maps_refuses_batches_and_nothing():
    with pytest.raises(ValueError, match=r"endpoint stem has the shape \[1, 4, 4, 8\]"):
        figures.feature_maps({"stem": np.zeros((1, 4, 4, 8))})
    with pytest.raises(ValueError, match="endpoints is empty"):
        figures.feature_maps({})
    with pytest.raises(ValueError, match="channels is 0"):
        figures.feature_maps({"stem": np.zeros((4, 4, 8))}, channels=0)
