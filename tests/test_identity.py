"""What a run is known by: what it computes and what it starts from, not where that lies."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from support import tiny

from mobilenet import build, identity, rundir
from mobilenet import config as config_lib
from mobilenet.config import ConfigError
from mobilenet.data import datasets
from mobilenet.sweep import points, runner
from mobilenet.train import loop
from mobilenet.train.checkpoints import Checkpoints
from mobilenet.workflows.train import train

pytestmark = pytest.mark.usefixtures("digits_cache")
SHARED = build.Shared()
TEACHER = identity.TEACHER


def write_untrained(config: Any, workdir: Path) -> None:
    """A run directory with the checkpoint of its first state."""
    parts = build.build(config, workdir, shared=SHARED)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(parts.init())


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs a and b of different weights, to start from."""
    root = tmp_path_factory.mktemp("sources")
    for seed, name in enumerate("ab"):
        write_untrained(short(seed=seed), root / name)
    return root


@pytest.fixture
def place(sources: Path, tmp_path: Path) -> Path:
    """Copies of the runs that a test may move."""
    shutil.copytree(sources, tmp_path / "place")
    return tmp_path / "place"


def short(**overrides: Any) -> Any:
    return tiny(train__num_epochs=0.25, **overrides)


def key_of(**overrides: Any) -> str:
    return points.make_point(short(), {k.replace("__", "."): v for k, v in overrides.items()}).key


@pytest.mark.parametrize("key", identity.RUNS)
def test_a_network_counts_by_what_it_holds(key: str, place: Path):
    name = key.replace(".", "__")
    before = key_of(**{name: str(place / "a")})
    assert before != key_of(**{name: str(place / "b")}) != key_of()
    (place / "a").rename(place / "c")
    assert key_of(**{name: str(place / "c")}) == before
    (place / "b").rename(place / "a")
    assert key_of(**{name: str(place / "a")}) != before


def test_the_images_as_they_are_shown_are_part_of_a_network(place: Path):
    before = identity.of_run(place / "a")
    stored = rundir.read_json(place / "a" / "data.json")
    for name, other in (("mean", [0.25]), ("class_names", list("abcdefghij"))):
        rundir.write_json(place / "a" / "data.json", {**stored, name: other})
        assert identity.of_run(place / "a") not in (before, None)
    rundir.write_json(place / "a" / "data.json", stored)
    config = rundir.read_config(place / "a")
    config_lib.update(config, {"model.activation": "relu"})
    (place / "a" / "config.json").write_text(config_lib.to_json(config))
    assert identity.of_run(place / "a") not in (before, None)


def test_what_is_no_complete_run_has_no_identity(place: Path, tmp_path: Path):
    assert identity.of_run(tmp_path / "nothing") is None
    shutil.rmtree(place / "a" / "checkpoints")
    assert identity.of_run(place / "a") is None
    (place / "b" / "data.json").unlink()
    assert identity.of_run(place / "b") is None


def test_a_folder_of_calibration_images_counts_by_its_names(tmp_path: Path):
    def key(folder: Path) -> str:
        return key_of(quantize__calibration_dir=str(folder), quantize__weights__bits=8)

    for name in ("one/x/1.png", "two/x/1.png", "three/x/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    one, two, three = (key(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two != three
    (tmp_path / "one" / ".DS_Store").touch()
    assert key(tmp_path / "one") == one
    (tmp_path / "one" / "2.png").touch()
    assert key(tmp_path / "one") != one


def test_paths_that_hold_nothing_count_by_their_text_and_are_refused_before_training(place: Path):
    assert key_of(**{TEACHER.replace(".", "__"): "nowhere"}) != key_of()
    (point,) = points.points_of(short(), [{TEACHER: "nowhere"}])
    with pytest.raises(ConfigError, match=f"{TEACHER} is 'nowhere', which is not a complete run"):
        points.require_sources([point], place)


# ---- starting and continuing


def test_build_takes_over_what_comes_with_the_weights(sources: Path, tmp_path: Path):
    weights = short(model__activation="relu", model__padding="SYMMETRIC")
    write_untrained(weights, tmp_path / "relu")
    config = config_lib.get_config()
    config_lib.update(config, {"pretrained": str(tmp_path / "relu"), "data.train_examples": 64})
    config_lib.update(config, {"train.global_batch_size": 16, "train.num_epochs": 0.25})
    build.build(config, tmp_path / "run", shared=SHARED)
    assert (config.model.activation, config.model.padding) == ("relu", "SYMMETRIC")
    stored = rundir.read_config(tmp_path / "run")
    assert (stored.model.activation, stored.model.padding) == ("relu", "SYMMETRIC")


@pytest.mark.parametrize("key", identity.RUNS)
def test_a_run_does_not_continue_from_another_network_at_the_same_path(
    key: str, place: Path, tmp_path: Path
):
    changes = {key.replace(".", "__"): str(place / "a")}
    build.build(short(**changes), tmp_path / "run", shared=SHARED)
    shutil.rmtree(place / "a")
    (place / "b").rename(place / "a")
    with pytest.raises(ConfigError, match=f"{key} is '.*/a', whose content has changed"):
        build.build(short(**changes), tmp_path / "run", shared=SHARED)


def test_a_run_continues_from_the_same_network_at_another_path(place: Path, tmp_path: Path):
    train(short(pretrained=str(place / "a")), tmp_path / "run", shared=SHARED)
    (place / "a").rename(place / "moved")
    summary = train(short(pretrained=str(place / "moved")), tmp_path / "run", shared=SHARED)
    assert summary is not None and summary["status"] == "done"
    assert rundir.read_config(tmp_path / "run").pretrained == str(place / "moved")


@pytest.mark.parametrize("given", [True, False])
def test_a_run_with_a_checkpoint_does_not_need_its_weights(
    given: bool, place: Path, tmp_path: Path
):
    config = short(pretrained=str(place / "a"))
    first = train(config, tmp_path / "run", shared=SHARED)
    (tmp_path / "run" / "summary.json").unlink()  # as if killed just before its end
    shutil.rmtree(place / "a")
    again = short(pretrained=str(place / "a")) if given else rundir.read_config(tmp_path / "run")
    summary = train(again, tmp_path / "run", shared=SHARED)
    assert first is not None and summary is not None
    assert summary["test"] == first["test"] and summary["status"] == "done"


def test_a_taught_run_needs_its_teacher_to_train_on_and_not_to_end(place: Path, tmp_path: Path):
    changes = {TEACHER.replace(".", "__"): str(place / "a")}
    parts = build.build(short(**changes), tmp_path / "begun", shared=SHARED)
    first = train(short(**changes), tmp_path / "run", shared=SHARED)
    shutil.rmtree(place / "a")
    summary = train(short(**changes), tmp_path / "run", shared=SHARED)
    assert first is not None and summary is not None
    assert summary["test"] == first["test"] and summary["teacher"] == first["teacher"]
    with pytest.raises(ConfigError, match=f"{TEACHER} is '.*/a', which is not a complete run"):
        build.build(short(**changes), tmp_path / "begun", shared=build.Shared())
    assert parts.total_steps == summary["step"]


def test_a_teacher_that_was_replaced_is_read_again(place: Path, tmp_path: Path):
    changes = {TEACHER.replace(".", "__"): str(place / "a")}
    shared = build.Shared()

    def teacher(name: str) -> Any:
        config = short(**changes)
        data = build.build_data(config, tmp_path / name, shared)
        found = shared.teacher(config, data, 10)
        assert found is not None
        return np.asarray(found.variables["params"]["classifier"]["kernel"])

    for name in "xy":
        (tmp_path / name).mkdir()
    before = teacher("x")
    shutil.rmtree(place / "a")
    (place / "b").rename(place / "a")
    assert not np.array_equal(before, teacher("y"))


def test_a_run_that_cannot_begin_leaves_no_files(tmp_path: Path):
    with pytest.raises(ConfigError, match="global_batch_size"):
        build.build(short(train__global_batch_size=4096), tmp_path / "run", shared=SHARED)
    assert not any((tmp_path / "run").iterdir())


def test_points_reach_other_processes_though_their_weights_have_gone(place: Path, tmp_path: Path):
    made = points.points_of(short(), [{"pretrained": str(place / "a")}])
    plan = points.write_plan(made, tmp_path)
    shutil.rmtree(place / "a")
    (read,) = points.read_plan(plan)
    assert (read.key, read.group) == (made[0].key, made[0].group)
    assert config_lib.to_json(read.config) == config_lib.to_json(made[0].config)


def test_a_sweep_whose_points_have_begun_does_not_need_their_weights(place: Path, tmp_path: Path):
    changes = [{"pretrained": str(place / "a"), "seed": seed} for seed in (0, 1)]
    made = points.points_of(short(), changes)
    for point in made:
        write_untrained(point.config, point.directory(tmp_path))
        runner.register([point], tmp_path)
    (place / "a").rename(place / "gone")
    again = points.points_of(short(), changes, tmp_path)
    assert [(p.key, p.group) for p in again] == [(p.key, p.group) for p in made]
    points.require_sources(again, tmp_path)
    parts = build.build(again[0].config, again[0].directory(tmp_path), shared=SHARED)
    assert parts.total_steps
    with pytest.raises(ConfigError, match="pretrained is .*/a', which has no config.json"):
        points.points_of(short(), [{"pretrained": str(place / "a"), "seed": 2}], tmp_path)


# ---- what a compiled program depends on


def changed(key: str, value: Any) -> Any:
    """Another value of a key that is allowed."""
    other = {
        "model.name": "mobilenet_v1", "model.blocks": ((1, 16, 1, 1),), "model.output_stride": 8,
        "model.se_ratio": 0.25, "model.expansion_ratio": 2.0, "model.num_classes": 7,
        "compress.pruning.rewind_epoch": 1.0, "quantize.rules": (("stem/.*", "ranges=fixed"),),
        "quantize.weights.bits": 8, "quantize.activations.bits": 8,
        "compress.pruning.method": "magnitude", "compress.pruning.pattern": "2:4",
        "compress.pruning.rules": (("classifier", "prune"),),
        "quantize.weights.estimator": "mse", "quantize.weights.ranges": "follow",
        "quantize.activations.estimator": "mse", "quantize.activations.ranges": "fixed",
    }  # fmt: skip
    if key in other:
        return other[key]
    choices = [choice for choice in config_lib.CHOICES.get(key, ()) if choice != value]
    if choices:
        return choices[-1]
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + "x"
    return (1, 1) if isinstance(value, tuple) else value + 1


@pytest.mark.parametrize("key", [key for key, _ in config_lib.flatten(config_lib.get_config())])
def test_every_key_belongs_to_the_program_or_is_said_not_to(key: str):
    base = config_lib.get_config()
    # Quantised, pruned and averaged, so that the keys of those are read.
    on = {"quantize.weights.bits": 4, "compress.pruning.method": "random", "train.ema_decay": 0.5}
    on["quantize.weights.ranges"] = "fixed"
    config_lib.update(base, on)
    other = base.copy_and_resolve_references()
    config_lib.update(other, {key: changed(key, dict(config_lib.flatten(base))[key])})
    same = build._step_config(base) == build._step_config(other)
    assert same == (key.startswith((*build.HOST_KEYS, *build.ARGUMENTS)) and key not in PARTLY)


# Arguments whose presence is the program's.
PARTLY = ("quantize.rules", "quantize.batch_norm_epochs", "compress.pruning.rewind_epoch")


def test_programs_do_not_depend_on_keys_of_the_host(tmp_path: Path):
    config = short()
    other = config.copy_and_resolve_references()
    for key, value in config_lib.flatten(config):
        if key.startswith(build.HOST_KEYS) and not key.startswith(("data.name", "data.norm")):
            config_lib.update(other, {key: changed(key, value)})

    def program(whole: Any) -> str:
        model = build.architecture.build_model(whole, 10)
        augment = build.build_augment(whole, (0.5,), (0.25,))
        step = build.build_train_step(whole, model, augment)
        state = build.init_state(short(), 10, SHARED)
        images = np.zeros((1, 4, *build.architecture.image_shape(config)), np.uint8)
        batch = {"image": images, "label": np.zeros((1, 4), np.int32)}
        batch |= {name: np.zeros((1, 4), np.int32) for name in ("index", "epoch")}
        lower: Any = step.lower  # pyright: ignore[reportFunctionMemberAccess]
        return lower(state, batch, build.hyperparameters(config, 0.1)).as_text()

    assert json.loads(config_lib.to_json(config)) != json.loads(config_lib.to_json(other))
    assert program(config) == program(other)


def test_maps_are_paired_at_the_size_of_the_images(tmp_path: Path):
    # Of 96 pixels the teacher's last maps are 3 x 3 and the student's 2 x 2; of 32 both are 1 x 1.
    def config(blocks: int) -> Any:
        rows = ((1, 8, 1, 1), *((2, 8, 1, 2),) * blocks)
        return short(data__image_size=96, model__stem_strides=2, model__blocks=rows)

    write_untrained(config(4), tmp_path / "teacher")
    student = config(5)
    student.compress.distillation.teacher = str(tmp_path / "teacher")
    student.compress.distillation.transfer = "attention"
    parts = build.build(student, tmp_path / "student", shared=SHARED)
    images = {"image": jax.ShapeDtypeStruct((1, 16, 96, 96, 1), np.uint8)}
    numbers = {
        name: jax.ShapeDtypeStruct((1, 16), np.int32) for name in ("label", "index", "epoch")
    }
    jax.eval_shape(parts.train_step, parts.structure(), images | numbers, parts.hyper(0))


def test_lanes_and_single_runs_know_each_other(sources: Path, tmp_path: Path):
    """Both begin through `build.build`, so both leave what they began with."""
    configs = [short(pretrained=str(sources / "a"), seed=seed) for seed in (0, 1)]
    workdirs = [tmp_path / "0", tmp_path / "1"]
    loop.train_lanes(build.build_lanes(configs, workdirs, shared=SHARED), workdirs)
    for workdir in workdirs:
        assert identity.read(workdir) == {"pretrained": identity.of_run(sources / "a")}


# ---- the examples


def folder(root: Path, *names: str) -> Path:
    """Images of two classes, ten each, with the same names in both."""
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for each in names or tuple(map(str, range(10))):
            pixels = np.full((8, 8), 60 + 100 * label, np.uint8)
            Image.fromarray(pixels).save(root / name / f"{each}.png")
    return root


def on_folder(root: Path) -> Any:
    return short(
        data__name="folder", data__data_dir=str(root), data__train_examples=0,
        data__validation_fraction=0.0, train__global_batch_size=8,
    )  # fmt: skip


def test_a_run_does_not_continue_with_other_images(tmp_path: Path):
    root = folder(tmp_path / "images")
    build.build(on_folder(root), tmp_path / "run", shared=SHARED)
    root = root.rename(tmp_path / "moved")
    build.build(on_folder(root), tmp_path / "run", shared=build.Shared())  # moved, the same
    (root / "dog" / "3.png").rename(root / "dog" / "33.png")
    with pytest.raises(
        ConfigError, match="differs from the data with which the run in .* began: .*other names"
    ):
        build.build(on_folder(root), tmp_path / "run", shared=build.Shared())
    (root / "dog" / "33.png").unlink()
    with pytest.raises(ConfigError, match=r"examples of \w+ before, \d+ now"):
        build.build(on_folder(root), tmp_path / "run", shared=build.Shared())


def test_an_older_run_is_compared_by_the_number_of_its_examples(tmp_path: Path):
    root = folder(tmp_path / "images")
    parts = build.build(on_folder(root), tmp_path / "run", shared=SHARED)
    stored = rundir.read_json(tmp_path / "run" / "data.json")
    del stored["examples"]
    rundir.write_json(tmp_path / "run" / "data.json", stored)
    rundir.write_json(tmp_path / "run" / "summary.json", {"examples": parts.facts[0]["examples"]})
    build.build(on_folder(root), tmp_path / "run", shared=build.Shared())
    (root / "dog" / "3.png").unlink()
    with pytest.raises(ConfigError, match=r"examples of \w+ before, \d+ now"):
        build.build(on_folder(root), tmp_path / "run", shared=build.Shared())


def test_the_digest_is_of_names_in_order():
    first, again, other = (
        datasets.identify(datasets.SubsetSource(Names(), np.array(indices)))
        for indices in ([0, 1], [0, 1], [1, 0])
    )
    assert first == again != other and first["count"] == other["count"] == 2


class Names:
    """A source of two examples, one of whose names is not UTF-8."""

    names = ("cat/1.png", "cat/\udcff.png")

    def __len__(self) -> int:
        return 2

    def read(self, index: int) -> Any:
        raise AssertionError("names are enough")

    def describe(self, index: int) -> str:
        return self.names[index]


def test_a_sweep_does_not_go_on_with_other_images(tmp_path: Path):
    root, sweep = folder(tmp_path / "images"), tmp_path / "sweep"
    made = points.points_of(on_folder(root), [{"seed": 0}, {"seed": 1}])
    first = made[0].directory(sweep)
    build.build(made[0].config, first, shared=SHARED)
    rundir.write_json(first / "summary.json", {"status": "done", "step": 2})
    runner.check(made, sweep, build.Shared())
    (root / "dog" / "3.png").unlink()
    with pytest.raises(ConfigError, match=r"examples of \w+ before, \d+ now"):
        runner.check(made, sweep, build.Shared())
    runner.check(made[:1], sweep, build.Shared())  # nothing is left to train
