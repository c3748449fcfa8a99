"""Names of variants: those of the file, or the shortest text that tells points apart."""

from mobilenet.sweep import naming, space

BITS = {
    "quantize.weights.bits": (8, 4),
    "quantize.activations.bits": (8,),
    "quantize.weights.estimator": ("mse",),
    "quantize.activations.estimator": ("mse", "kl"),
}


def test_keys_with_the_same_last_part_do_not_look_alike():
    both = {"quantize.weights.bits": 8, "quantize.activations.bits": 4, "train.num_epochs": 0.0}
    assert naming.describe(both) == "weights.bits=8 activations.bits=4 num_epochs=0"
    assert naming.short_keys(["seed", "model.seed", "a.b.c", "x.b.c"]) == {
        "seed": "seed", "model.seed": "model.seed", "a.b.c": "a.b.c", "x.b.c": "x.b.c",
    }  # fmt: skip
    assert naming.describe({}) == "default"


def test_values_that_all_points_share_are_left_out():
    assert naming.tell_apart(space.grid(BITS)) == [
        "bits=8 estimator=mse",
        "bits=8 estimator=kl",
        "bits=4 estimator=mse",
        "bits=4 estimator=kl",
    ]
    assert naming.tell_apart([{}, {"model.se_ratio": 0.25}]) == ["default", "se_ratio=0.25"]
    assert naming.tell_apart([{"a.x": 1, "b.x": 2}, {"a.x": 2, "b.x": 1}]) == [
        "a.x=1 b.x=2", "a.x=2 b.x=1",
    ]  # fmt: skip


def test_numbers_that_differ_late_have_all_their_digits():
    rates = [{"lr": 0.12341}, {"lr": 0.12342}, {"lr": 0.5}]
    assert naming.tell_apart(rates) == ["lr=0.12341", "lr=0.12342", "lr=0.5"]


def test_variants_have_their_names_and_replicates_share_them():
    variants = {"without": {}, "SE": {"model.se_ratio": 0.25}, "t = 6": {"model.t": 6}}
    points = space.product(list(variants.values()), space.seeds(2))
    names = naming.name_points(points, variants)
    assert names == ["without", "without", "SE", "SE", "t = 6", "t = 6"]
    assert naming.name_points([{"model.t": 6.0, "seed": 3}], variants) == ["t = 6"]
    assert naming.name_points([{"seed": 0}, {"seed": 1}]) == ["default", "default"]


def test_points_that_change_more_than_a_variant_are_named_by_both():
    variants = {"without": {}, "SE": {"model.se_ratio": 0.25}}
    points = space.product(
        list(variants.values()), space.grid({"optimizer.learning_rate": (0.1, 0.2)})
    )
    assert naming.name_points(points, variants) == [
        "without, learning_rate=0.1",
        "without, learning_rate=0.2",
        "SE, learning_rate=0.1",
        "SE, learning_rate=0.2",
    ]
    # Where one value belongs to all of them it still is a change of the variant.
    assert naming.name_points([{"model.se_ratio": 0.25, "seed": 0, "lr": 1}], variants) == [
        "SE, lr=1"
    ]


def test_runs_have_their_seed_where_there_are_several():
    assert naming.label("SE", 2, several=True) == "SE, seed 2"
    assert naming.label("SE", 2, several=False) == "SE"


def test_a_point_without_a_variant_is_not_called_default_next_to_variants():
    points = [{"model.se_ratio": 0.25}, {"model.dropout_rate": 0.5}]
    variants = {"SE": {"model.se_ratio": 0.25}}
    assert naming.name_points(points, variants) == ["SE", "dropout_rate=0.5"]
    assert naming.name_points(points[1:], variants) == ["dropout_rate=0.5"]
