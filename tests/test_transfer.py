"""Starting from other weights, learning a part of the network, ending when validation says so."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from support import metric_rows, summary, tiny

from mobilenet import build, inference, rundir, transfer
from mobilenet import config as config_lib
from mobilenet.config import ConfigError
from mobilenet.train import loop
from mobilenet.train.checkpoints import read_checkpoint

pytestmark = pytest.mark.usefixtures("digits_cache")
SHARED = build.Shared()  # runs that differ in numbers alone compile once


def train(config: Any, workdir: Path) -> dict[str, Any]:
    with rundir.locked(workdir):
        return loop.train(build.build(config, workdir, shared=SHARED), workdir)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits to start from."""
    workdir = tmp_path_factory.mktemp("source")
    train(tiny(train__num_epochs=0.5, model__bn_epsilon=2e-3), workdir)
    return workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images of three classes: two of the digits', and one that they lack."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for label, name in enumerate(("3", "7", "cat")):
        (root / name).mkdir()
        for i in range(30):
            pixels = random.integers(0, 60, (8, 8)) + 90 * label
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def fine(source: Path, folder: Path, **overrides: Any) -> Any:
    return tiny(
        **{
            "pretrained": str(source), "data__name": "folder", "data__data_dir": str(folder),
            "data__train_examples": 0, "train__num_epochs": 1.0, "train__ema_decay": 0.0,
            "augment__mixup_alpha": 0.0, **overrides,
        }
    )  # fmt: skip


def leaves(tree: Any) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def changed(before: Any, after: Any) -> set[str]:
    old, new = leaves(before), leaves(after)
    assert old.keys() == new.keys()
    return {path.split("/")[0] for path in old if not np.array_equal(old[path], new[path])}


def backbone(params: Any) -> dict[str, Any]:
    return {name: leaves for name, leaves in params.items() if name != "classifier"}


def start(config: Any, workdir: Path) -> Any:
    """The parts of a run, as the first thing of `train`."""
    return build.build(config, workdir)


# ---- what is inherited


def test_the_architecture_and_the_normalisation_come_with_the_weights(source: Path):
    config = config_lib.get_config()
    config.pretrained = str(source)
    rundir.inherit(config)
    old = rundir.read_config(source)
    assert config.model.blocks == old.model.blocks and config.model.bn_epsilon == 2e-3
    assert config.data.channels == 1 and config.data.normalization == "pretrained"
    assert config.model.stem_strides == 1  # free, but not set
    assert config.model.dropout_rate == 0.0  # how it is trained is not inherited
    again = config.copy_and_resolve_references()
    rundir.inherit(again)
    assert config_lib.to_json(again) == config_lib.to_json(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"model__width_multiplier": 0.5},
            r"model.width_multiplier is 0.5, but the weights .* 1.0",
        ),
        ({"model__padding": "SYMMETRIC"}, "model.padding is 'SYMMETRIC'.*leave it out"),
        # Set to the default on purpose, which the weights are not.
        ({"model__bn_epsilon": 1e-3}, "model.bn_epsilon is 0.001, but the weights .* 0.002"),
        ({"data__normalization": "symmetric"}, "data.normalization is 'symmetric'.*'dataset'"),
        ({"pretrained": "no/such/run"}, "pretrained is 'no/such/run', which has no config.json"),
    ],
)
def test_what_the_weights_are_not_is_refused(
    overrides: dict[str, Any], message: str, source: Path, folder: Path
):
    with pytest.raises(ConfigError, match=message):
        rundir.inherit(fine(source, folder, **overrides))


def test_other_strides_are_kept(source: Path):
    config = tiny(pretrained=str(source), model__stage_strides=(2, 2))
    rundir.inherit(config)
    assert config.model.stage_strides == (2, 2)


def test_strides_that_are_set_to_their_default_are_kept(source: Path):
    config = config_lib.get_config()
    config.pretrained = str(source)
    config.model.stem_strides = 2  # the weights' are 1
    rundir.inherit(config)
    assert config.model.stem_strides == 2


def test_weights_of_another_network_are_told_tensor_by_tensor(source: Path):
    initial = jax.device_get(build.init_variables(tiny(model__head_features=24), 10))
    with pytest.raises(ConfigError, match=r"head/conv/kernel is \(1, 1, 8, 16\) there and .* 24"):
        transfer.start_from(source, initial, ("a",), ("b",))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (("b", "a"), [2, 1]),
        (("n01440764_tench", "n01443537"), [3, 4]),
        (("b", "dog"), "dog"),
        (("n01440764_tench", "n01440764"), "n01440764"),
        (("n0144",), "n0144"),
    ],
)
def test_classes_are_matched_by_name_and_wordnet_id(wanted: tuple[str, ...], expected: Any):
    known = ("background", "a", "b", "n01440764", "n01443537_goldfish")
    assert transfer.match_classes(wanted, known) == expected


# ---- what is learnt


def test_a_run_starts_from_the_averaged_weights_with_a_new_classifier(
    source: Path, folder: Path, tmp_path: Path
):
    config = fine(source, folder, data__validation_fraction=0.2)
    parts = start(config, tmp_path)
    state, old = parts.init(), read_checkpoint(source).eval_variables
    assert parts.facts[0]["pretrained"] == {"step": 8, "classifier": "new"}
    assert changed(backbone(old["params"]), backbone(state.params)) == set()
    assert changed(old["batch_stats"], state.batch_stats) == set()
    assert state.params["classifier"]["kernel"].shape == (16, 3)
    stored = json.loads((tmp_path / "data.json").read_text())
    assert stored["mean"] == json.loads((source / "data.json").read_text())["mean"]
    assert stored["class_names"] == ["3", "7", "cat"]


def test_columns_of_known_classes_are_kept(source: Path, folder: Path, tmp_path: Path):
    known = tmp_path / "known"
    known.mkdir()
    for name in ("3", "7"):
        (known / name).symlink_to(folder / name)
    config = fine(source, known)
    parts = start(config, tmp_path / "run")
    old = read_checkpoint(source).eval_variables["params"]["classifier"]
    kernel = np.asarray(parts.init().params["classifier"]["kernel"])
    np.testing.assert_array_equal(kernel, old["kernel"][:, [3, 7]])
    assert parts.facts[0]["pretrained"]["classifier"] == "selected"


@pytest.mark.slow
def test_the_backbones_rate_scales_its_updates(source: Path, folder: Path, tmp_path: Path):
    steps = {}
    for rate in (1.0, 0.25):
        config = fine(
            source, folder, finetune__backbone_rate=rate, train__num_epochs=0.24,
            optimizer__weight_decay=0.0,
        )  # fmt: skip
        parts = start(config, tmp_path / str(rate))
        assert parts.total_steps == 1
        before = jax.device_get(parts.init().params)
        train(config, tmp_path / str(rate))
        after = read_checkpoint(tmp_path / str(rate)).items["params"]
        steps[rate] = leaves(jax.tree.map(np.subtract, after, before))
    for path, full in steps[1.0].items():
        factor = 1.0 if path.startswith("classifier") else 0.25
        # Differences of float32 weights: a few of their units in the last place.
        np.testing.assert_allclose(steps[0.25][path], factor * full, rtol=1e-3, atol=2e-7)


@pytest.mark.parametrize(
    ("settings", "params", "stats"),
    [
        ({}, {"stem", "blocks_0_0", "blocks_1_0", "head", "classifier"},
         {"stem", "blocks_0_0", "blocks_1_0", "head"}),
        pytest.param(
            {"backbone_rate": 0.0}, {"classifier"}, {"stem", "blocks_0_0", "blocks_1_0", "head"},
            marks=pytest.mark.slow,
        ),
        ({"train_from": "blocks_1"}, {"blocks_1_0", "head", "classifier"}, {"blocks_1_0", "head"}),
        pytest.param({"train_from": "classifier"}, {"classifier"}, set(), marks=pytest.mark.slow),
        pytest.param(
            {"batch_norm": "frozen"}, {"stem", "blocks_0_0", "blocks_1_0", "head", "classifier"},
            set(), marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_only_what_shall_learn_changes(
    settings: dict[str, Any], params: set[str], stats: set[str],
    source: Path, folder: Path, tmp_path: Path,
):  # fmt: skip
    # Momentum and a large weight decay would move frozen parameters if anything did.
    more = {f"finetune__{key}": value for key, value in settings.items()}
    config = fine(source, folder, optimizer__weight_decay=0.1, train__num_epochs=0.75, **more)
    first = start(config, tmp_path / "first").init()
    train(config, tmp_path / "run")
    last = read_checkpoint(tmp_path / "run").items
    assert changed(first.params, last["params"]) == params
    assert changed(first.batch_stats, last["batch_stats"]) == stats


def test_a_linear_probe_computes_no_gradient_of_the_backbone(source: Path, folder: Path):
    def products(**overrides: Any) -> int:
        config = fine(source, folder, model__conv_form="shifted", **overrides)
        parts = start(config, folder.parent / (config.finetune.train_from or "all"))
        batch = {
            "image": np.zeros((2, 8, 8, 8, 1), np.uint8),
            **{name: np.zeros((2, 8), np.int32) for name in ("label", "index", "epoch")},
        }
        jaxpr = jax.make_jaxpr(parts.train_step)(parts.init(), batch, parts.hyper(0))
        return str(jaxpr).count("dot_general")

    full, probe = products(), products(finetune__train_from="classifier")
    # Forward, and the classifier's two gradients (that of its input is not needed).
    assert 0 < probe <= full / 2


def test_an_unknown_module_is_refused_with_those_there_are(source: Path, tmp_path: Path):
    config = tiny(pretrained=str(source), finetune__train_from="block_3")
    rundir.inherit(config)
    with pytest.raises(ConfigError, match="allowed are stem, blocks_0, blocks_1, head, classifier"):
        build.build(config, tmp_path)


# ---- when it ends


def stale(**overrides: Any) -> Any:
    """A run whose validation never changes, for its weights do not."""
    return tiny(
        **{
            "optimizer__learning_rate": 1e-12, "optimizer__weight_decay": 0.0,
            "train__ema_decay": 0.0, "train__num_epochs": 10.0, "train__patience": 2,
            "model__bn_momentum": 0.999999, **overrides,
        }
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_without_progress_ends_with_its_best_checkpoint(tmp_path: Path):
    result = train(stale(), tmp_path)
    # The first validation, at epoch 1, and two that were no better.
    assert (result["status"], result["step"], result["total_steps"]) == ("done", 48, 160)
    best = result["result_step"]
    assert result["best_checkpoint"] == best and best in (16, 32, 48)
    rows = {r["step"]: r["top1"] for r in metric_rows(tmp_path) if r["split"] == "validation"}
    assert sorted(rows) == [16, 32, 48] and result["validation"]["top1"] == rows[best]
    # The test result is that of the checkpoint that a user gets by default.
    config = rundir.read_config(tmp_path)
    restored = inference.read_checkpoint(tmp_path, "result")
    assert restored.step == best
    data = build.build_data(config, tmp_path)
    again = inference.evaluate(config, data, restored.eval_variables, "test")
    assert again.summary() == result["test"]
    # The same command has nothing left to do; after a kill before the summary, the same result.
    before = (tmp_path / "metrics.jsonl").read_text()
    assert train(stale(), tmp_path) == result
    (tmp_path / "summary.json").unlink()
    repeated = train(stale(), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    keys = ("status", "step", "result_step", "validation", "test")
    assert {k: repeated[k] for k in keys} == {k: result[k] for k in keys}
    assert summary(tmp_path)["status"] == "done"


@pytest.mark.parametrize("best_by", ["top1", "loss"])
def test_with_patience_left_the_result_is_still_the_best(best_by: str, tmp_path: Path):
    config = stale(
        train__best_by=best_by,
        train__patience=3,
        train__num_epochs=3.0,
        optimizer__learning_rate=0.5,
    )
    result = train(config, tmp_path)
    rows = {r["step"]: r[best_by] for r in metric_rows(tmp_path) if r["split"] == "validation"}
    best = max(rows.values()) if best_by == "top1" else min(rows.values())
    assert result["step"] == 48 and rows[result["result_step"]] == best
    assert result["validation"][best_by] == best


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"checkpoint__keep_best": 0}, "train.patience is 2; it needs checkpoint.keep_best"),
        ({"eval__every_epochs": 0.0}, "train.patience is 2; it counts validations"),
        ({"data__validation_fraction": 0.0}, "train.patience is 2, but there is no validation"),
        ({"train__patience": -1}, "train.patience is -1"),
        ({"data__normalization": "pretrained"}, "set pretrained=RUN, a run directory"),
        ({"finetune__batch_norm": "fixed"}, "allowed are adapt, frozen"),
        ({"finetune__backbone_rate": 2.0}, r"must be in \[0, 1\]"),
    ],
)
def test_what_cannot_run_is_refused(overrides: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        build.build(stale(**overrides), tmp_path)


def test_lanes_cannot_end_alone(tmp_path: Path):
    with pytest.raises(ConfigError, match="train.patience ends each run at its own step"):
        build.build_lanes([stale(seed=s) for s in (0, 1)], [tmp_path / "0", tmp_path / "1"])


# ---- evaluated elsewhere


def test_features_alone_are_neither_evaluated_nor_predicted_with(source: Path, tmp_path: Path):
    stored = json.loads((source / "data.json").read_text()) | {"class_names": []}
    (tmp_path / "data.json").write_text(json.dumps(stored))
    config = rundir.read_config(source)
    with pytest.raises(ConfigError, match="has no classifier, only features; train one"):
        build.build_data(config, tmp_path)
    with pytest.raises(ConfigError, match="has no classifier, only features; train one"):
        inference.Predictor(config, {}, tmp_path)


def test_a_run_is_evaluated_on_pictures_whose_classes_are_named_alike(
    source: Path, folder: Path, tmp_path: Path
):
    known = tmp_path / "known"
    known.mkdir()
    for name in ("3", "7"):
        (known / name).symlink_to(folder / name)
    config = rundir.read_config(source)
    config_lib.update(
        config, {"data.name": "folder", "data.data_dir": str(known), "data.test_fraction": 1.0}
        | {"data.train_examples": 0},
    )  # fmt: skip
    data = build.build_data(config, source, match_classes=True)
    variables = read_checkpoint(source, "result").eval_variables
    result = inference.evaluate(config, data, variables, "test")
    assert len(result.label) == 60 and set(result.label) == {3, 7} and result.num_classes == 10
    config.data.data_dir = str(folder)
    with pytest.raises(ConfigError, match=r"the class 'cat', which is not one of the classes"):
        build.build_data(config, source, match_classes=True)
