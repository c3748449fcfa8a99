"""Quantised runs through the real loop: from float weights, resumed, as lanes, started from."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support import metric_rows, summary, tiny

from mobilenet import architecture, build, conversion, inference, rundir
from mobilenet import config as config_lib
from mobilenet.config import ConfigError
from mobilenet.quantize import layers
from mobilenet.quantize.fold import is_folded
from mobilenet.rundir import RunDirectoryError
from mobilenet.train import loop
from mobilenet.train.checkpoints import Checkpoints, read_checkpoint

pytestmark = pytest.mark.usefixtures("digits_cache")
SHARED = build.Shared()  # runs that differ in numbers alone compile once
LEARNED = {
    "quantize__weights__ranges": "lsq", "quantize__activations__ranges": "lsq",
    "quantize__activations__symmetric": True,
}  # fmt: skip


def w8a8(source: Path | None = None, **overrides: Any) -> Any:
    """Eight bits everywhere; of a run's weights, or from scratch."""
    return tiny(
        **{
            "pretrained": str(source or ""), "quantize__weights__bits": 8,
            "quantize__activations__bits": 8, "quantize__calibration_examples": 64,
            "train__num_epochs": 0.5, **overrides,
        }
    )  # fmt: skip


def start(config: Any, workdir: Path) -> loop.Parts:
    """The parts of a run, as the first thing of `train`."""
    return build.build(config, workdir, shared=SHARED)


def train(config: Any, workdir: Path) -> dict[str, Any]:
    return loop.train(start(config, workdir), workdir)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float run on digits to start from."""
    workdir = tmp_path_factory.mktemp("source")
    config = tiny(
        train__num_epochs=16.0, augment__mixup_alpha=0.0, eval__every_epochs=0.0,
        model__dropout_rate=0.0, optimizer__name="sgd", optimizer__learning_rate=2.0,
        schedule__warmup_epochs=1.0,
    )  # fmt: skip
    train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def learned(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of quantisation-aware training that learned its steps."""
    workdir = tmp_path_factory.mktemp("learned")
    train(w8a8(source, **LEARNED, optimizer__learning_rate=0.05), workdir)
    return workdir


def leaves(tree: Any) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_same_bits(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


# ---- post-training quantisation


@pytest.fixture(scope="module")
def quantised(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Post-training quantisation with most of what there is."""
    workdir = tmp_path_factory.mktemp("ptq")
    config = w8a8(
        source, train__num_epochs=0.0, quantize__weights__ranges="fixed",
        quantize__weights__estimator="mse", quantize__activations__estimator="percentile",
        quantize__correct_bias="empirical", quantize__equalize=True, quantize__absorb_bias=True,
        quantize__rules=(("stem/.*weights", "bits=6"), ("logits", "bits=16")),
    )  # fmt: skip
    train(config, workdir)
    return workdir


def test_post_training_quantisation_is_a_run_without_steps(source: Path, quantised: Path):
    found, before = summary(quantised), summary(source)
    assert found["status"] == "done" and found["step"] == found["total_steps"] == 0
    assert abs(found["test"]["top1"] - before["test"]["top1"]) < 0.05
    assert before["test"]["top1"] > 0.5
    facts = json.loads((quantised / "quantization.json").read_text())
    assert set(facts) == {
        "channel_spread_before", "channel_spread_after", "absorbed_channels", "mean_shift",
        "float_bytes", "weight_bytes", "mean_bits",
    }  # fmt: skip
    # Kernels of the stem [3, 3, 1, 8], two bottlenecks, the head [8, 16], the classifier [16, 10].
    count = 72 + (72 + 64) + (128 + 144 + 128) + 128 + 160
    assert facts["float_bytes"] == 4 * count
    assert facts["weight_bytes"] == count - 72 * 2 / 8  # the stem's 6 bits
    assert facts["mean_bits"] == pytest.approx(8 * facts["weight_bytes"] / count)
    restored = read_checkpoint(quantised)
    bits = {p: int(v) for p, v in leaves(restored.items["quant"]).items() if p.endswith("/bits")}
    others = {p: b for p, b in bits.items() if b != 8}
    assert others == {"stem/conv/weights/bits": 6, "logits/bits": 16}
    assert is_folded(restored.eval_variables, 1e-3)


def test_a_quantised_run_is_evaluated_and_predicts(quantised: Path):
    config, restored = rundir.read_config(quantised), read_checkpoint(quantised)
    data = build.build_data(config, quantised)
    evaluation = inference.evaluate(config, data, restored.eval_variables, "test")
    assert evaluation.top1 == summary(quantised)["test"]["top1"]
    predictor = inference.Predictor(config, restored.eval_variables, quantised)
    files = [data.dataset.splits["test"].read(i)[0] for i in range(10)]
    pictures = np.stack([predictor.load(bytes(file)) for file in files])  # pyright: ignore
    np.testing.assert_array_equal(predictor(pictures).argmax(1), evaluation.top[:10, 0])


def test_a_run_without_steps_can_be_repeated_and_completed(quantised: Path, tmp_path: Path):
    assert train(rundir.read_config(quantised), quantised) == summary(quantised)
    # As a kill between the checkpoint and the summary leaves it.
    before = read_checkpoint(quantised).items
    (quantised / "summary.json").rename(tmp_path / "summary.json")
    train(rundir.read_config(quantised), quantised)
    assert_same_bits(read_checkpoint(quantised).items, before)
    expected = json.loads((tmp_path / "summary.json").read_text())
    assert summary(quantised)["test"] == expected["test"]


def test_streamed_pictures_calibrate_as_those_in_memory(source: Path, tmp_path: Path):
    states = {}
    for where in ("always", "never"):
        config = w8a8(source, train__num_epochs=0.0, data__in_memory=where)
        states[where] = start(config, tmp_path / where).init()
    assert_same_bits(states["always"].quant, states["never"].quant)


def test_calibration_sees_the_pictures_that_the_seed_draws(source: Path, tmp_path: Path):
    def pictures(**overrides: Any) -> np.ndarray:
        config = w8a8(source, **overrides)
        rundir.inherit(config)
        data = build.build_data(config, None, SHARED)
        batches = list(data.calibration_batches(config.quantize.calibration_examples))
        assert [len(b) for b in batches] == [len(b) for b in data.calibration_batches(
            config.quantize.calibration_examples)]  # fmt: skip
        return np.concatenate(batches)

    whole = build.build_data(w8a8(), None, SHARED).load("train").image  # pyright: ignore
    drawn = pictures()
    assert drawn.shape == (64, 8, 8, 1) and drawn.dtype == np.uint8
    known = {picture.tobytes() for picture in whole}
    assert all(picture.tobytes() in known for picture in drawn)
    assert not np.array_equal(drawn, whole[:64])
    np.testing.assert_array_equal(pictures(), drawn)
    assert not np.array_equal(pictures(seed=1), drawn)
    everything = pictures(quantize__calibration_examples=10_000)
    np.testing.assert_array_equal(everything, whole)


# ---- quantisation-aware training


def test_training_goes_on_from_the_float_weights(source: Path, tmp_path: Path):
    config = w8a8(source, train__num_epochs=1.0, optimizer__learning_rate=0.02)
    parts = start(config, tmp_path)
    state, old = parts.init(), read_checkpoint(source).eval_variables
    assert_same_bits(state.params, old["params"])  # kernels are rounded as they are used
    assert_same_bits(state.batch_stats, old["batch_stats"])
    assert state.ema.keys() == {"params", "batch_stats"}
    train(config, tmp_path)
    last = read_checkpoint(tmp_path).items
    before, after = leaves(state.quant), leaves(last["quant"])
    moved = {path.rpartition("/")[2] for path in before if before[path] != after[path]}
    assert moved == {"low", "high"}  # bits and endless counters stay
    rows = [row for row in metric_rows(tmp_path) if row["split"] == "train"]
    # It starts where the float run was, far below the first loss of a fresh network.
    fresh = [row for row in metric_rows(source) if row["split"] == "train"]
    assert rows[0]["loss"] < fresh[0]["loss"]
    assert summary(tmp_path)["test"]["top1"] > summary(source)["test"]["top1"] - 0.1


@pytest.mark.slow
def test_quantisers_learn_with_a_rate_of_their_own(source: Path, learned: Path, tmp_path: Path):
    first = leaves(start(w8a8(source, **LEARNED), tmp_path / "first").init().params)
    config = w8a8(source, **LEARNED, quantize__step_rate=0.0)
    train(config, tmp_path / "still")
    last, still = (
        leaves(read_checkpoint(run).items["params"]) for run in (learned, tmp_path / "still")
    )
    steps = [path for path in first if path.endswith("/step")]
    assert len(steps) == len(layers.sites(read_checkpoint(learned).items["quant"]))
    moved = [path for path in steps if not np.array_equal(first[path], last[path])]
    assert len(moved) > 0.8 * len(steps)  # some get no gradient
    assert all(np.array_equal(first[path], still[path]) for path in steps)
    assert not np.array_equal(first["stem/conv/kernel"], still["stem/conv/kernel"])


@pytest.mark.slow
def test_a_resumed_run_ends_in_the_same_bits(source: Path, tmp_path: Path):
    """Killed after a checkpoint, with counters that end before and after it."""
    config = w8a8(
        source, train__num_epochs=1.0, quantize__observe_epochs=0.75,
        quantize__batch_norm_epochs=0.25, train__accumulation_steps=2,
        quantize__activations__ranges="observe",
    )  # fmt: skip
    train(config, tmp_path / "whole")
    parts = start(config.copy_and_resolve_references(), tmp_path / "killed")
    steps = 0

    def killed(*args: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 8:
            raise SystemExit
        return parts.train_step(*args)

    with pytest.raises(SystemExit):
        loop.train(dataclasses.replace(parts, train_step=killed), tmp_path / "killed")
    saved = Checkpoints(tmp_path / "killed" / "checkpoints", read_only=True)
    assert saved.steps() == [5]
    early = saved.read(5).items
    counters = leaves(early["quant"])
    assert counters["stem/batch_norm"] == 2 * (4 - 5)  # two parts a step
    assert counters["stem/output/observe"] == 2 * (12 - 5)
    train(config, tmp_path / "killed")
    whole, resumed = (read_checkpoint(tmp_path / name) for name in ("whole", "killed"))
    assert whole.step == resumed.step == 16
    assert_same_bits(resumed.items, whole.items)
    assert metric_rows(tmp_path / "killed") == metric_rows(tmp_path / "whole")
    # Running statistics have ended before the checkpoint, ranges after it.
    assert_same_bits(early["batch_stats"], whole.items["batch_stats"])
    assert leaves(whole.items["quant"])["stem/output/observe"] == 2 * (12 - 16)


@pytest.mark.slow
def test_frozen_normalisation_observes_ranges(source: Path, tmp_path: Path):
    config = w8a8(source, finetune__batch_norm="frozen")
    first = start(config, tmp_path).init()
    train(config, tmp_path)
    last = read_checkpoint(tmp_path).items
    assert_same_bits(last["batch_stats"], jax.device_get(first.batch_stats))
    before, after = leaves(first.quant), leaves(last["quant"])
    assert before["blocks_1_0/project/output/high"] != after["blocks_1_0/project/output/high"]


@pytest.mark.slow
def test_only_what_shall_learn_changes(source: Path, tmp_path: Path):
    config = w8a8(source, **LEARNED, finetune__train_from="head", optimizer__weight_decay=0.1)
    first = start(config, tmp_path).init()
    train(config, tmp_path)
    before, after = leaves(first.params), leaves(read_checkpoint(tmp_path).items["params"])
    moved = {path.split("/")[0] for path in before if not np.array_equal(before[path], after[path])}
    assert moved <= {"head", "pooled", "classifier", "logits"} and "head" in moved


def test_counters_are_passes_and_not_steps():
    config = w8a8(quantize__observe_epochs=0.5, train__accumulation_steps=4)
    found = build._settings(config, 16.0)
    assert found.observe_passes == 32 and found.batch_norm_passes == math.inf
    config.quantize.batch_norm_epochs = 1e-9
    assert build._settings(config, 16.0).batch_norm_passes == 0  # ends at once, not never


def test_float_checkpoints_from_before_quantisation_load(source: Path, tmp_path: Path):
    restored = read_checkpoint(source)
    assert restored.items["quant"] == {} and "quant" not in restored.eval_variables
    path = source / "checkpoints" / str(restored.step) / "meta" / "metadata"
    text = path.read_text()
    meta = json.loads(text)
    del meta["digests"]["quant"]
    try:
        path.write_text(json.dumps(meta))
        assert_same_bits(read_checkpoint(source).items, restored.items)
    finally:
        path.write_text(text)


def test_an_untrained_network_gets_the_ranges_of_its_training(tmp_path: Path):
    config = w8a8()
    state = jax.device_get(build.build(config, tmp_path, shared=SHARED).init())
    data = build.build_data(config, tmp_path)
    (pictures, _), *_ = data.evaluated("validation", 64)
    images = build.preprocess(data.mean, data.std)(pictures)
    variables = {"params": state.params, "batch_stats": state.batch_stats, "quant": state.quant}
    apart = []
    for build_network in (architecture.build_model, architecture.build_float):
        network = build_network(config, 10).clone(dropout_rate=0.0)
        apart.append(network.apply(variables, images, True, mutable=["batch_stats", "quant"])[0])
    rounded, plain = map(np.asarray, apart)
    assert np.std(plain, axis=0).min() > 0
    assert np.abs(rounded - plain).max() < 0.3 * np.abs(plain).max()


def test_a_batch_of_one_value_per_channel_gives_no_statistics():
    # 8 pixels after strides of 8: maps of 1 x 1.
    config = w8a8(model__blocks=((1, 8, 1, 2), (2, 8, 1, 2)), model__stem_strides=2)
    variables = build.init_variables(config, 10)
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(np.float32)

    def estimate(*sizes: int) -> Any:
        ends = np.cumsum(sizes)
        batches = [images[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        return build._settle(config, 10, variables, lambda: batches)["batch_stats"]

    jax.tree.map(np.testing.assert_array_equal, estimate(4, 1), estimate(4))
    jax.tree.map(np.testing.assert_array_equal, estimate(1), variables["batch_stats"])


# ---- sweeps and lanes


def test_points_of_a_sweep_share_one_step():
    rules = (("stem/.*weights", "bits=4"), ("logits", "bits=16, estimator=mse"))
    same = [
        w8a8(),
        w8a8(quantize__weights__bits=3, quantize__activations__bits=4),
        w8a8(quantize__rules=rules),
        w8a8(quantize__rules=(("blocks.*weights", "bits=2"),), quantize__activations__bits=0),
        w8a8(quantize__activations__estimator="kl", quantize__percentile=99.0, seed=3),
        w8a8(quantize__observe_epochs=0.5, quantize__step_rate=0.1, quantize__adaround_steps=9),
        w8a8(quantize__fold=False, quantize__correct_bias="empirical"),
        w8a8(quantize__weights__bits=0, quantize__activations__bits=0,
             quantize__rules=(("stem/.*weights", "bits=4"),)),
    ]  # fmt: skip
    assert len({build._step_config(config) for config in same}) == 1
    assert len({build.lane_key(config) for config in same}) == 1
    others = [
        tiny(train__num_epochs=0.5),
        w8a8(quantize__weights__per_channel=False),
        w8a8(quantize__activations__ranges="fixed"),
        w8a8(quantize__equalize=True),
        w8a8(quantize__batch_norm_epochs=0.5),
        w8a8(quantize__rules=(("stem/.*weights", "per_channel=False"),)),
        w8a8(quantize__rules=(("stem/.*", "bits=4"), (".*weights", "per_channel=False"))),
        w8a8(train__ema_decay=0.0),
    ]
    assert len({build._step_config(config) for config in [same[0], *others]}) == 9
    assert len({build.lane_key(config) for config in [same[0], *others]}) == 9
    two = [w8a8(quantize__batch_norm_epochs=epochs) for epochs in (0.5, 1.0)]
    assert build.lane_key(two[0]) == build.lane_key(two[1])
    # What is normalised is a configuration still.
    config_lib.validate(config_lib.from_json(build._step_config(same[2])))


@pytest.mark.slow
def test_lanes_differ_in_bits_and_seeds(source: Path, tmp_path: Path):
    configs = [
        w8a8(source, train__num_epochs=0.25),
        w8a8(source, train__num_epochs=0.25, seed=1, quantize__weights__bits=3,
             quantize__rules=(("logits", "bits=0"), ("stem/.*weights", "bits=8"))),
    ]  # fmt: skip
    workdirs = [tmp_path / f"lane{i}" for i in range(2)]
    for config, workdir in zip(configs, workdirs, strict=True):
        workdir.mkdir()
        rundir.inherit(config)
    loop.train_lanes(build.build_lanes(configs, workdirs, shared=SHARED), workdirs)
    misses = SHARED.steps.cache_info().misses
    steps = []
    for i, config in enumerate(configs):
        alone = tmp_path / f"alone{i}"
        steps.append(start(config, alone).train_step)
        train(config, alone)
        ours, own = read_checkpoint(workdirs[i]), read_checkpoint(alone)
        for name in ("params", "quant", "ema"):
            # Rounding to codes turns last bits into steps of a grid, which training then mixes.
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=0.05, atol=0.05),
                ours.items[name], own.items[name],
            )  # fmt: skip
        bits = leaves(ours.items["quant"])
        assert bits["logits/bits"] == (8, 0)[i] and bits["head/conv/weights/bits"] == (8, 3)[i]
        assert abs(summary(workdirs[i])["test"]["loss"] - summary(alone)["test"]["loss"]) < 0.1
    assert steps[0] is steps[1]
    assert SHARED.steps.cache_info().misses <= misses + 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"quantize__weights__bits": 0, "quantize__activations__bits": 0},
            "Lanes differ in .*quantize.weights.bits.*quantisation must be on in all or in",
        ),
        ({"quantize__activations__ranges": "fixed"}, "differ in quantize.activations.ranges; runs"),
        (
            {"quantize__rules": (("stem/.*weights", "bits=4, symmetric=False"),)},
            "differ in quantize.rules; .* quantize.rules may differ in bits and estimators",
        ),
    ],
)
def test_lanes_of_other_programs_are_refused(
    overrides: dict[str, Any], message: str, tmp_path: Path
):
    with pytest.raises(ConfigError, match=message):
        build.build_lanes([w8a8(), w8a8(**overrides)], [tmp_path / "a", tmp_path / "b"])


# ---- starting from quantised runs


@pytest.mark.slow
def test_what_quantisers_learned_is_left_behind(learned: Path, source: Path, tmp_path: Path):
    old = read_checkpoint(learned).eval_variables
    kept = {p: v for p, v in leaves(old["params"]).items() if not p.endswith("/step")}
    assert len(kept) < len(leaves(old["params"]))
    plain = start(tiny(pretrained=str(learned)), tmp_path / "float").init()
    assert leaves(plain.params).keys() == kept.keys() and plain.quant == {}
    jax.tree.map(np.testing.assert_array_equal, leaves(plain.params), kept)
    assert_same_bits(plain.batch_stats, old["batch_stats"])

    pact = {"quantize__activations__ranges": "pact", "quantize__activations__symmetric": True}
    other = start(w8a8(learned, **pact), tmp_path / "pact").init()
    found = leaves(other.params)
    assert all(np.array_equal(found[path], leaf) for path, leaf in kept.items())
    assert {p.rpartition("/")[2] for p in found.keys() - kept.keys()} == {"clip"}
    again = start(w8a8(learned, **LEARNED), tmp_path / "again").init()
    assert leaves(again.params).keys() == leaves(old["params"]).keys()
    train(w8a8(learned, train__num_epochs=0.0), tmp_path / "ptq")
    assert summary(tmp_path / "ptq")["status"] == "done"


def test_folded_weights_are_evaluated_but_not_trained_by_batches(quantised: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="have their batch normalisation folded in.*'frozen'"):
        start(tiny(pretrained=str(quantised), train__num_epochs=1.0), tmp_path / "refused")
    config = w8a8(quantised, finetune__batch_norm="frozen")
    # Equalised weights do without the 6 of ReLU6, whoever uses them.
    state = start(config, tmp_path / "frozen").init()
    assert config.model.activation == "relu"
    assert is_folded({"batch_stats": state.batch_stats}, 1e-3)
    plain = tiny(pretrained=str(quantised), train__num_epochs=0.0)
    train(plain, tmp_path / "float")
    assert plain.model.activation == "relu"
    close = summary(tmp_path / "float")["test"]["top1"] - summary(quantised)["test"]["top1"]
    assert abs(close) < 0.05


def test_files_of_float_weights_do_not_hold_a_quantised_run(quantised: Path):
    with pytest.raises(RunDirectoryError, match="is quantised, and a file of float weights"):
        conversion.read_run(quantised)


# ---- what cannot run


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"quantize__rules": (("tail/.*", "bits=4"),)},
            r"quantize: the rule 'tail/\.\*' applies to no site",
        ),
        (
            {"quantize__rules": ((".*/output", "bits=2"),)},
            "quantize: the rule .* at .*/output: bits is 2; it must be in 4..16",
        ),
        ({"quantize__adaround_steps": 9}, "quantize: adaround_steps is 9, but the range at"),
        (
            {"quantize__correct_bias": "analytic", "model__se_ratio": 0.5},
            "quantize: correct_bias is 'analytic', which needs",
        ),
    ],
)
def test_what_does_not_fit_the_network_is_refused_before_compiling(
    overrides: dict[str, Any], message: str, tmp_path: Path
):
    shared = build.Shared()
    with pytest.raises(ConfigError, match=message):
        build.build(w8a8(**overrides), tmp_path, shared=shared)
    assert shared.steps.cache_info().misses == 0
