"""Lists of overrides: what is combined with what, and what is refused."""

import pytest

from mobilenet.sweep import space


def test_grid_takes_every_combination_and_the_last_axis_varies_fastest():
    assert space.grid({"a": (1, 2), "b": "xy"}) == [
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"},
    ]  # fmt: skip


def test_zipped_takes_values_together():
    assert space.zipped({"a": (1, 2), "b": (3, 4)}) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    with pytest.raises(ValueError, match="different lengths"):
        space.zipped({"a": (1, 2), "b": (3,)})


def test_products_merge_and_refuse_a_key_twice():
    assert space.product([{"a": 1}, {"a": 2}], space.seeds(2, start=5)) == [
        {"a": 1, "seed": 5}, {"a": 1, "seed": 6}, {"a": 2, "seed": 5}, {"a": 2, "seed": 6},
    ]  # fmt: skip
    with pytest.raises(ValueError, match="seed is set by two parts"):
        space.product(space.seeds(2), [{"seed": 1}])


def test_texts_name_the_seed_of_their_run():
    cut = {"pretrained": "runs/cut_0.5_{seed}", "epochs": 2, "name": "digits"}
    assert space.filled(cut, 3) == {**cut, "pretrained": "runs/cut_0.5_3"}
    assert space.naming_seed(cut) == {"pretrained": "runs/cut_0.5_{seed}"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: space.uniform(1, 1),
        lambda: space.uniform(0, float("inf")),
        lambda: space.log_uniform(0, 1),
        lambda: space.choice(),
        lambda: space.seeds(0),
    ],
)
def test_ranges_that_cannot_be_drawn_from_are_refused(make):
    with pytest.raises(ValueError):
        make()
