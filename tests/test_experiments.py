"""Every experiment file: it builds, it says what it is, and its smoke form really trains."""

import json
from pathlib import Path

import jax
import pytest
from PIL import Image
from support import TINY, TINY_SWEEP

from mobilenet import architecture, build
from mobilenet import config as config_lib
from mobilenet.config import ConfigError
from mobilenet.experiment import load_config, load_module, load_sweep
from mobilenet.models import cost
from mobilenet.models.mobilenet_v2 import PAPER_BLOCKS
from mobilenet.sweep import points, scales, space
from mobilenet.train import loop

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for path in (ROOT / "experiments").glob("**/*.py") if path.name != "__init__.py"
)
# Ablations share their base, so their smoke forms are one configuration: it is trained once.
SMOKE = list(
    {config_lib.fingerprint(load_config(f"{path}:smoke", {})): path for path in FILES}.values()
)
QUICK = ("digits",)


def test_there_are_experiments_and_the_base_table_is_the_papers():
    assert len(FILES) >= 4
    assert tuple(PAPER_BLOCKS) == tuple(config_lib.get_config().model.blocks)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_experiments_are_valid_and_documented(path: Path):
    config = load_config(str(path), {})
    config_lib.validate(config)
    config_lib.validate(config, devices=2)
    assert config_lib.to_json(config_lib.from_json(config_lib.to_json(config))) == (
        config_lib.to_json(config)
    )
    text = path.read_text()
    assert "Run:" in text and f"--config={path.relative_to(ROOT)}" in text


@pytest.mark.parametrize("name", config_lib.CHOICES["model.name"])
@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_experiment_takes_every_network(path: Path, name: str):
    for arg in ("", ":smoke"):
        config = load_config(f"{path}{arg}", {"model.name": name})
        config_lib.validate(config)
        assert config.model.name == name


def test_another_network_leaves_only_what_it_does_not_read():
    path, default = str(ROOT / "experiments/baselines/cifar10.py"), config_lib.get_config().model
    config = load_config(path, {"model.name": "resnet18", "model.width_multiplier": "0.5"})
    assert (config.model.stem_strides, config.model.padding) == (1, "SYMMETRIC")  # of the file
    assert config.model.width_multiplier == 0.5
    assert config.model.stage_strides == () and config.model.blocks == default.blocks
    strides = {"model.name": "mobilenet_v1", "model.stage_strides": "(1, 1, 2, 2, 2)"}
    assert load_config(path, strides).model.stage_strides == (1, 1, 2, 2, 2)
    # The same network leaves nothing, and a key that is set for one that does not read it is named.
    same = load_config(path, {"model.name": "mobilenet_v2"})
    assert config_lib.to_json(same) == config_lib.to_json(load_config(path, {}))
    wrong = load_config(path, {"model.name": "resnet18", "model.expansion_ratio": "3"})
    with pytest.raises(ConfigError, match="model.expansion_ratio has no effect on resnet18"):
        config_lib.validate(wrong)


def test_points_of_a_sweep_may_be_other_networks():
    base = load_config(str(ROOT / "experiments/baselines/digits.py"), {})
    (point,) = points.points_of(base, [{"model.name": "mobilenet_v1"}])
    assert point.config.model.blocks == config_lib.get_config().model.blocks
    with pytest.raises(ConfigError, match="model.head_features has no effect on mobilenet_v1"):
        points.points_of(base, [{"model.name": "mobilenet_v1", "model.head_features": 64}])


@pytest.mark.slow
@pytest.mark.parametrize("name", config_lib.CHOICES["model.name"])
def test_smoke_forms_train_every_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = ROOT / "experiments/baselines/cifar10.py"
    config = load_config(f"{path}:smoke", {"model.name": name})
    workdir = tmp_path / "run"
    workdir.mkdir()
    assert loop.train(build.build(config, workdir), workdir)["step"] == 2
    jax.clear_caches()


@pytest.mark.parametrize(
    "path",
    # Each compiles the whole network of its experiment; one stays among the fast tests.
    [path if path.stem in QUICK else pytest.param(path, marks=pytest.mark.slow) for path in SMOKE],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_smoke_forms_train(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = load_config(f"{path}:smoke", {})
    workdir = tmp_path / "run"
    workdir.mkdir()
    summary = loop.train(build.build(config, workdir), workdir)
    assert summary["status"] == "done" and summary["step"] == 2
    assert json.loads((workdir / "summary.json").read_text())["test"]["examples"] == 360
    jax.clear_caches()


@pytest.mark.parametrize("arg", ["", *scales.SCALES])
@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_point_of_a_sweep_can_run(
    path: Path, arg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if not hasattr(load_module(str(path)), "sweep"):
        return
    try:
        config = load_config(f"{path}:{arg}", {})
    except ConfigError as error:
        assert "allowed are" in str(error) or "is not one of this experiment" in str(error)
        return
    overrides = load_sweep(f"{path}:{arg}")
    # Runs that points start from, by what `points_of` reads of them.
    monkeypatch.chdir(tmp_path)
    named = [space.filled(changes, changes.get("seed", 0)) for changes in overrides]
    for start in {config.pretrained, *(each.get("pretrained", "") for each in named)}:
        if start:
            source = load_config(f"{path}:{arg}", {"pretrained": ""})
            Path(start).mkdir(parents=True)
            (Path(start) / "config.json").write_text(config_lib.to_json(source))
    assert points.points_of(config, overrides)  # refuses what cannot run


def make_folder(root: Path, *parts: str, count: int = 5) -> Path:
    """A folder of two classes of colour images, flat or with parts."""
    for part in parts or ("",):
        for value, name in enumerate(("a", "b")):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                image = Image.new("RGB", (40, 30), (40 * index, 120 * value, 0))
                image.save(root / part / name / f"{index}.png")
    return root


@pytest.mark.parametrize("parts", [(), ("train", "test")], ids=["flat", "parts"])
@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_smoke_forms_fit_a_small_folder_of_a_user(
    path: Path, parts: tuple[str, ...], tmp_path: Path
):
    overrides = {"data.name": "folder", "data.data_dir": str(make_folder(tmp_path, *parts))}
    config = load_config(f"{path}:smoke", overrides)
    config_lib.validate(config)
    dataset, _ = build.Shared().open(config)
    build.check_data(config, dataset)
    assert dataset.class_names == ("a", "b") and config.data.image_size == 32
    _, steps = build.count_steps(config, len(dataset.splits["train"]))
    assert 1 <= steps <= 2
    wins = load_config(
        f"{path}:smoke", {**overrides, "data.image_size": "48", "data.channels": "3"}
    )
    assert (wins.data.image_size, wins.data.channels) == (48, 3)


def test_the_place_of_the_data_is_enough_where_the_experiment_names_them(tmp_path: Path):
    place = {"data.data_dir": str(tmp_path)}
    finetune = load_config(str(ROOT / "experiments/transfer/finetune.py:smoke"), place)
    assert (finetune.data.name, finetune.data.data_dir) == ("folder", str(tmp_path))
    paper = load_config(str(ROOT / "experiments/baselines/imagenet_paper.py:smoke"), place)
    assert (paper.data.name, paper.data.test_split) == ("imagenet2012", "validation")
    # Other data than the experiment's have the usual parts, and the digits stay where none is said.
    other = {"data.name": "folder", **place}
    paper = load_config(str(ROOT / "experiments/baselines/imagenet_paper.py:smoke"), other)
    assert (paper.data.name, paper.data.test_split) == ("folder", "test")
    assert load_config(str(ROOT / "experiments/transfer/finetune.py:smoke"), {}).data.data_dir == ""


def test_smoke_forms_take_the_network_of_given_weights(tmp_path: Path):
    weights = config_lib.get_config()
    weights.model.width_multiplier = 0.75
    (tmp_path / "config.json").write_text(config_lib.to_json(weights))
    path = str(ROOT / "experiments/transfer/finetune.py:smoke")
    config = load_config(path, {"pretrained": str(tmp_path)})
    config_lib.inherit(config, weights)
    assert config.model.width_multiplier == 0.75 and config.model.blocks == weights.model.blocks
    assert load_config(path, {}).model.width_multiplier == 0.25


@pytest.mark.slow
def test_a_smoke_form_trains_on_a_folder_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = ROOT / "experiments/transfer/finetune.py"
    config = load_config(f"{path}:smoke", {"data.data_dir": str(make_folder(tmp_path / "images"))})
    workdir = tmp_path / "run"
    workdir.mkdir()
    summary = loop.train(build.build(config, workdir), workdir)
    assert summary["status"] == "done" and summary["test"]["examples"] == 2
    jax.clear_caches()


def test_sweeps_get_the_argument_behind_the_colon():
    assert len(load_sweep(str(TINY_SWEEP))) == 12
    (searched,) = load_sweep(f"{TINY_SWEEP}:search")
    assert list(searched) == ["optimizer.learning_rate"]


def test_overrides_are_text_that_takes_the_keys_type():
    config = load_config(
        f"{TINY}:smoke",
        {"model.remat": "TRUE", "model.stage_strides": "[2, 1]", "data.name": "1", "seed": "7"},
    )
    assert (config.model.remat, config.model.stage_strides) == (True, (2, 1))
    assert (config.data.name, config.seed) == ("1", 7)


def test_files_that_are_no_experiments_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="is 'no.py', which is not a file"):
        load_module("no.py:smoke")
    with pytest.raises(ConfigError, match=r"README.md is not Python: its name must end in .py"):
        load_module(str(ROOT / "README.md"))
    with pytest.raises(ConfigError, match=r"tiny.py has no sweep\(\); it must return a list"):
        load_sweep(str(TINY))
    broken = tmp_path / "broken.py"
    for text, message in (("x = 1", "it needs get_config"), ("def (", "is not Python: invalid")):
        broken.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_module(str(broken))


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("imagenet_paper", 3_504_872, 300_774_272),
        ("imagenet_cosine", 3_504_872, 300_774_272),
    ],
)
def test_imagenet_baselines_are_the_papers_network(name: str, params: int, macs: int):
    config = load_config(str(ROOT / f"experiments/baselines/{name}.py"), {})
    totals = cost.totals(architecture.layer_costs(config, 1000))
    assert (totals.params, totals.macs) == (params, macs)


def test_cifar10_baseline_is_the_published_network():
    config = load_config(str(ROOT / "experiments/baselines/cifar10.py"), {})
    totals = cost.totals(architecture.layer_costs(config, 10))
    assert (totals.params, totals.macs) == (2_236_682, 87_976_448)
