"""Points: validated before the first one starts, known by what they compute."""

from pathlib import Path

import pytest

from mobilenet import config as config_lib
from mobilenet.config import ConfigError
from mobilenet.sweep import points, space


def test_keys_tell_what_is_computed_and_groups_leave_the_seed_out():
    base = config_lib.get_config()
    a, b, c = points.points_of(
        base, [{"seed": 0}, {"seed": 1}, {"seed": 0, "model.width_multiplier": 0.5}]
    )
    assert len({a.key, b.key, c.key}) == 3
    assert a.group == b.group != c.group
    assert base.seed == 0 and base.model.width_multiplier == 1.0


def test_replicates_that_name_their_seed_are_one_group(tmp_path: Path):
    taught = {"compress.distillation.teacher": "runs/dense_{seed}"}
    made = points.points_of(
        config_lib.get_config(), space.product([taught, {}], space.seeds(2, start=3))
    )
    teachers = [point.config.compress.distillation.teacher for point in made]
    assert teachers == ["runs/dense_3", "runs/dense_4", "", ""]
    assert len({point.key for point in made}) == 4
    assert made[0].group == made[1].group != made[2].group == made[3].group
    read = points.read_plan(points.write_plan(made, tmp_path))
    assert [(p.key, p.group, p.overrides) for p in read] == [
        (p.key, p.group, p.overrides) for p in made
    ]


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        ({"data.num_workers": 2}, True),
        ({"checkpoint.every_steps": 7, "log.every_steps": 3}, True),
        ({"data.data_dir": "elsewhere"}, True),
        ({"model.expansion_ratio": 6}, False),
        ({"train.num_epochs": 11.0}, False),
    ],
)
def test_how_a_run_is_carried_out_does_not_change_its_key(overrides: dict, same: bool):
    base = config_lib.get_config()
    changed = points.make_point(base, overrides)
    assert (changed.key == points.make_point(base, {}).key) is same


def test_a_number_counts_by_its_value():
    base = config_lib.get_config()
    keys = {points.make_point(base, {"model.expansion_ratio": t}).key for t in (6, 6.0)}
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "no points"),
        ([{"seed": 1}, {"seed": 1}], "compute the same"),
        ([{}, {"model.widht": 1}], "model.widht is not a configuration key"),
        ([{}, {"model.width_multiplier": -1.0}], "width_multiplier=-1.*model.width_multiplier is"),
    ],
)
def test_every_point_is_checked_before_the_first_starts(overrides: list, message: str):
    with pytest.raises(ConfigError, match=message):
        points.points_of(config_lib.get_config(), overrides)


def test_plans_carry_points_to_other_processes(tmp_path: Path):
    made = points.points_of(
        config_lib.get_config(),
        space.product(space.grid({"model.expansion_ratio": (2, (6,) * 7)}), space.seeds(2)),
    )
    path = points.write_plan(made, tmp_path)
    assert points.write_plan(made, tmp_path) == path
    assert points.write_plan(made[:2], tmp_path) != path
    read = points.read_plan(path)
    assert [p.key for p in read] == [p.key for p in made]
    assert [p.label for p in read] == [p.label for p in made]


def test_points_have_the_names_of_the_experiments_variants():
    variants = {"narrow": {"model.width_multiplier": 0.5}, "wide": {}}
    changes = space.product(list(variants.values()), space.seeds(2))
    made = points.points_of(config_lib.get_config(), changes, variants=variants)
    assert [p.variant for p in made] == ["narrow", "narrow", "wide", "wide"]
    assert [p.label for p in made][:2] == ["narrow, seed 0", "narrow, seed 1"]
    unnamed = points.points_of(config_lib.get_config(), changes)
    assert [p.label for p in unnamed][1:3] == ["width_multiplier=0.5, seed 1", "default, seed 0"]
