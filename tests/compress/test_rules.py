"""What is pruned, how much and when: literal cases, and the real network's kernels."""

import math

import jax
import numpy as np
import pytest

from mobilenet import architecture
from mobilenet import config as config_lib
from mobilenet.compress import rules
from mobilenet.compress.rules import Pattern, RuleError, Schedule, Tensor
from mobilenet.trees import flatten


def shapes(**overrides: object) -> dict[rules.Path, tuple[int, ...]]:
    config = config_lib.get_config()
    config_lib.update(config, {k.replace("__", "."): v for k, v in overrides.items()})
    model = architecture.build_model(config, 10)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    found = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return {path: leaf.shape for path, leaf in flatten(found).items()}


def names(rows: tuple[tuple[str, str], ...] = (), pattern: str = "weights", **overrides: object):
    chosen = rules.choose(
        shapes(**overrides), rules.parse_rules(rows), rules.parse_pattern(pattern)
    )
    return [tensor.name for tensor in chosen]


def test_depthwise_stem_and_squeezes_are_spared_by_default():
    found = names(model__se_ratio=0.25)
    assert len(found) == 16 + 17 + 2  # expansions (the first block has none), projections, two
    assert {name.split("/")[-1] for name in found} == {"expand", "project", "head", "classifier"}
    assert not any("/se/" in name for name in found)


def test_rules_name_roles_and_paths_and_the_first_counts():
    rows = (("blocks_0_0/.*", "spare"), ("depthwise", "prune"), ("head|classifier", "spare"))
    found = names(rows)
    assert "blocks_1_0/depthwise" in found and "blocks_0_0/depthwise" not in found
    assert "head" not in found and "classifier" not in found and "stem" not in found
    assert names((("se", "prune"),), model__se_ratio=0.25)[-1] == "head"
    assert "blocks_1_0/se/reduce" in names((("se", "prune"),), model__se_ratio=0.25)
    other = names(model__name="mobilenet_v1")
    assert {name.split("/")[-1] for name in other} == {"pointwise", "classifier"}


@pytest.mark.parametrize(
    ("rows", "pattern", "message"),
    [
        ((("blocks_9_.*", "prune"),), "weights", "the rule 'blocks_9_.*' applies to no module"),
        ((("expand", "spare"), (".*/expand", "prune")), "weights", "an earlier rule matches all"),
        ((("se", "prune"),), "weights", "the rule 'se' applies to no module"),
        (((".*", "spare"),), "weights", "spare every module"),
        ((), "1x4", "the pattern 1x4 does not divide classifier, which has 1280 input and 10"),
        ((("stem", "prune"),), "2:4", "the pattern 2:4 does not divide stem"),
    ],
)
def test_rules_that_do_not_fit_are_refused(
    rows: tuple[tuple[str, str], ...], pattern: str, message: str
):
    with pytest.raises(RuleError, match=message):
        names(rows, pattern)


TENSORS = (
    Tensor(("a", "conv", "kernel"), (1, 1, 4, 8)),
    Tensor(("b", "conv", "kernel"), (1, 1, 8, 16), sparsity=0.25),
    Tensor(("c", "kernel"), (16, 10)),
)


@pytest.mark.parametrize(
    ("distribution", "pattern", "sparsity", "expected"),
    [
        ("uniform", "weights", 0.9, [3, 96, 16]),  # 32 - 29 (28.8), 128 - 32, 160 - 144
        ("uniform", "weights", 0.0, [32, 96, 160]),
        ("global", "weights", 0.9, [32]),
        ("uniform", "2:4", 0.5, [2, 2, 2]),
        ("uniform", "1:4", 0.75, [1, 1, 1]),
        ("uniform", "2x2", 0.5, [4, 24, 20]),  # blocks
    ],
)
def test_counts_by_hand(distribution: str, pattern: str, sparsity: float, expected: list[int]):
    counts = rules.keep_counts(TENSORS, sparsity, distribution, rules.parse_pattern(pattern))
    assert counts.tolist() == expected


def test_erk_by_hand_and_exact_in_total():
    # Raw densities: 14 / 32, 26 / 128, 26 / 160; at 0.5 none is full, so each is its share.
    tensors = [Tensor(t.path, t.shape) for t in TENSORS]
    raw = np.array([14 / 32, 26 / 128, 26 / 160])
    expected = raw * (160 / (14 + 26 + 26))
    over = rules.erk_densities([t.shape for t in tensors], 0.5)
    # The first would be 1.06: it stays dense and the other two share the rest.
    assert expected[0] > 1
    np.testing.assert_allclose(over, [1.0, 26 / 128 * 128 / 52, 26 / 160 * 128 / 52])
    for sparsity in (0.1, 0.5, 0.77, 0.9, 0.99):
        counts = rules.keep_counts(tensors, sparsity, "erk", Pattern())
        assert counts.sum() == 320 - math.floor(320 * sparsity + 0.5)
        assert (counts <= [32, 128, 160]).all()


def test_the_cubic_schedule_is_the_papers():
    schedule = Schedule("cubic", start=10, end=110, every=30, final=0.8, initial=0.2)
    assert [s for s in range(200) if schedule.changes(s)] == [10, 40, 70, 100, 110]
    assert schedule.sparsity(9) == 0.0 and schedule.sparsity(10) == pytest.approx(0.2)
    assert schedule.sparsity(60) == pytest.approx(0.8 - 0.6 * 0.125)
    assert schedule.sparsity(110) == schedule.sparsity(500) == 0.8
    assert schedule.last_change == 110


def test_one_shot_changes_once():
    schedule = Schedule("one_shot", start=7, end=0, every=5, final=0.5)
    assert [s for s in range(50) if schedule.changes(s)] == [7]
    assert (schedule.sparsity(6), schedule.sparsity(7)) == (0.0, 0.5)


def test_rigl_keeps_its_sparsity_and_exchanges_less_and_less():
    schedule = Schedule("one_shot", 0, 100, 25, 0.9, regrows=True, drop=0.4)
    assert [s for s in range(200) if schedule.changes(s)] == [0, 25, 50, 75]
    assert {schedule.sparsity(s) for s in (0, 25, 75, 150)} == {0.9}
    assert schedule.exchanged(0) == 1.0  # the first masks are random
    assert schedule.exchanged(50) == pytest.approx(0.2)
    assert schedule.exchanged(75) == pytest.approx(0.2 * (1 + math.cos(0.75 * math.pi)))


def test_rewinding_takes_the_learning_rate_back():
    schedule = Schedule("one_shot", start=6, end=0, every=1, final=0.5, rewind=2)
    # Update 6 changes the masks and puts the weights back to those before update 2.
    assert [schedule.effective(s) for s in range(11)] == [0, 1, 2, 3, 4, 5, 6, 2, 3, 4, 5]
    twice = Schedule("cubic", start=4, end=8, every=4, final=0.5, rewind=1)
    assert [schedule.effective(s) for s in (6, 7)] == [6, 2]
    assert [twice.effective(s) for s in range(11)] == [0, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
