"""From configuration to parts: derived numbers, stored statistics, evaluation of anything."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny

from mobilenet import architecture, build, inference, rundir
from mobilenet import config as config_lib
from mobilenet.config import ConfigError
from mobilenet.quantize import layers
from mobilenet.train import loop

pytestmark = pytest.mark.usefixtures("digits_cache")


def test_numbers_are_derived_from_inputs(tmp_path: Path):
    parts = build.build(
        tiny(
            optimizer__learning_rate=0.32, schedule__warmup_epochs=1.0, train__num_epochs=3.0,
            eval__every_epochs=0.5,
        ),
        tmp_path,
    )  # fmt: skip
    assert parts.steps_per_epoch == 16 and parts.total_steps == 48
    assert parts.eval_every_steps == 8
    # 0.32 per 256 images, with 16 per batch; the warm-up's 16th update is the first at the peak.
    assert parts.hyper(15)["learning_rate"] == np.float32(0.02)
    assert parts.hyper(7)["learning_rate"] == np.float32(0.01)
    assert parts.facts[0]["examples"] == {"train": 256, "validation": 143, "test": 360}


def test_statistics_are_stored_and_read_back(tmp_path: Path):
    first = build.build_data(tiny(), tmp_path)
    assert first.mean[0] == pytest.approx(0.305, abs=0.01)  # digits: about 4.9 of 16
    stored = (tmp_path / "data.json").read_text()
    (tmp_path / "data.json").write_text(stored.replace(str(first.mean[0]), "0.125"))
    assert build.build_data(tiny(), tmp_path).mean == (0.125,)


def test_examples_are_handed_out_as_they_are_evaluated(tmp_path: Path):
    data = build.build_data(tiny(eval__batch_size=100), tmp_path)
    whole = list(data.evaluated("validation"))
    assert [len(images) for images, _ in whole] == [100, 43]  # no padding
    arrays: Any = data.load("validation")
    np.testing.assert_array_equal(np.concatenate([x for x, _ in whole]), arrays.image)
    np.testing.assert_array_equal(np.concatenate([y for _, y in whole]), arrays.label)
    few = list(data.evaluated("validation", 120))
    assert [len(images) for images, _ in few] == [100, 20]
    with pytest.raises(loop.EmptySplitError, match="'val' has no examples; this data has train"):
        next(data.evaluated("val"))


def test_a_run_without_data_json_is_not_used(tmp_path: Path):
    with pytest.raises(rundir.RunDirectoryError, match=r"has no data.json; it is not a complete"):
        build.require_stored(tmp_path)


def test_other_classes_in_a_run_directory_are_refused(tmp_path: Path):
    build.build_data(tiny(), tmp_path)
    text = (tmp_path / "data.json").read_text()
    (tmp_path / "data.json").write_text(text.replace('"0"', '"zero"'))
    with pytest.raises(ConfigError, match=r"was trained on zero, 1, 2, ... \(10\)"):
        build.build_data(tiny(), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__num_classes": 3}, "model.num_classes is 3, but digits has 10 classes"),
        ({"model__num_classes": 0}, "feature extractor., which has no loss"),
        ({"data__train_examples": 8}, "train.global_batch_size is 16, but the train part .* has 8"),
        ({"train__global_batch_size": 17}, "must be a multiple of the 2 devices"),
        ({"data__data_dir": "/proc/nowhere"}, "/proc/nowhere"),
        ({"data__test_split": "exam"}, "exam"),
        ({"data__name": "no_such_set"}, "no_such_set"),
        ({"data__name": "folder", "data__data_dir": "/no/such/folder"}, "/no/such/folder"),
    ],
)
def test_what_cannot_run_is_refused_before_compiling(
    overrides: dict[str, Any], message: str, tmp_path: Path
):
    with pytest.raises(ValueError, match=message):
        build.build(tiny(**overrides), tmp_path)


def test_evaluation_is_the_same_for_any_batch_size(tmp_path: Path):
    config = tiny()
    data = build.build_data(config, tmp_path)
    variables = build.init_variables(config, 10)
    results = []
    for size in (2, 14, 90, 1000):
        config.eval.batch_size = size
        results.append(inference.evaluate(config, data, variables, "test"))
    for result in results:
        np.testing.assert_array_equal(result.index, np.arange(360))
        np.testing.assert_array_equal(result.label, results[0].label)
        np.testing.assert_array_equal(result.top, results[0].top)
        np.testing.assert_allclose(result.loss, results[0].loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("pixels", "batch"), [(1, 6), (150, 6), (150, 7), (2**12, 6)])
def test_a_batch_in_turns_gives_what_it_gives_at_once(
    pixels: int, batch: int, monkeypatch: pytest.MonkeyPatch
):
    config = tiny(model__conv_form="shifted")
    model = architecture.build_model(config, 10)
    variables = build.init_variables(config, 10)
    images = np.random.default_rng(0).integers(0, 256, (batch, 8, 8, 1), np.uint8)
    monkeypatch.setattr(build, "CHUNK_PIXELS", pixels)
    logits = jax.jit(build.build_forward(model, (0.3,), (0.4,)))(variables, images)
    whole: Any = jax.jit(model.apply)(variables, (images / np.float32(255) - 0.3) / 0.4)
    np.testing.assert_allclose(logits, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "most", "taken"),
    [(16, 5, 4), (16, 0, 1), (6, 9, 6), (6, 6, 6), (7, 3, 7), (9, 5, 3), (24, 12, 12)],
)
def test_turns_divide_the_batch_or_are_not_worth_it(batch: int, most: int, taken: int):
    seen: list[int] = []

    def double(x: Any) -> Any:
        seen.append(len(x))
        return 2 * x

    x = np.arange(batch * 3.0, dtype=np.float32).reshape(batch, 3)
    np.testing.assert_array_equal(build._map_chunks(double, jnp.asarray(x), most), 2 * x)
    assert set(seen) == {taken}


def test_initial_variables_follow_the_seed():
    first, again, other = (build.init_variables(tiny(seed=s), 10) for s in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernel = ("params", "stem", "conv", "kernel")
    values = [v[kernel[0]][kernel[1]][kernel[2]][kernel[3]] for v in (first, other)]
    assert not np.array_equal(*values)


def test_predictor_sees_pictures_as_evaluation_does(tmp_path: Path):
    config = tiny()
    data = build.build_data(config, tmp_path)
    variables = build.init_variables(config, 10)
    expected = inference.evaluate(config, data, variables, "test")
    predictor = inference.Predictor(config, variables, tmp_path)
    source = data.dataset.splits["test"]
    encoded = [source.read(i)[0] for i in range(20)]
    pictures = np.stack([predictor.load(bytes(e)) for e in encoded])  # pyright: ignore
    probabilities = predictor(pictures)
    np.testing.assert_allclose(probabilities.sum(1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(1), expected.top[:20, 0])
    assert predictor.class_names == [str(i) for i in range(10)]


def compiled_step(config: Any) -> tuple[str, Any]:
    """The program of a training step of 16-pixel images, 5 classes, and the state it takes."""
    config.model.blocks = ((1, 8, 1, 1), (3, 8, 1, 2))
    config.data.image_size = 16
    model = architecture.build_model(config, 5)
    step: Any = build.build_train_step(
        config, model, build.build_augment(config, (0.5,) * 3, (1.0,) * 3)
    )
    batch = {
        "image": np.zeros((jax.device_count(), 2, 16, 16, 3), np.uint8),
        **{
            name: np.zeros((jax.device_count(), 2), np.int32)
            for name in ("label", "index", "epoch")
        },
    }
    state = build.state_structure(config, 5)
    compiled = step.lower(state, batch, build.hyperparameters(config, 0.1)).compile()
    return compiled.as_text(), state


@pytest.mark.parametrize(("form", "grouped"), [("shifted", False), ("grouped", True)])
def test_the_compiled_step_has_grouped_convolutions_only_in_that_form(form: str, grouped: bool):
    config = config_lib.get_config()
    config.model.conv_form = form
    compiled, _ = compiled_step(config)
    found = any(f"{kind}_group_count=" in compiled for kind in ("feature", "batch"))
    assert found == grouped


@pytest.mark.slow
@pytest.mark.parametrize("bits", [0, 8])
def test_the_compiled_step_rounds_at_every_site_or_nowhere(bits: int):
    config = config_lib.get_config()
    config_lib.update(config, {"quantize.weights.bits": bits, "quantize.activations.bits": bits})
    compiled, state = compiled_step(config)
    found = re.findall(r"f32\[(\d+,)+\d+\]\S* round-nearest-even\(", compiled)
    if not bits:
        assert not found
        return
    sites = layers.sites(state.quant)
    # A fused computation may round again instead of keeping what it rounded.
    assert len(found) >= len(sites) == 18


def test_runs_of_one_program_have_one_key():
    data = build.build_data(tiny())

    def key(**overrides: Any) -> str:
        return build.program_key(tiny(**overrides), data, 10, None)

    same = [{"optimizer__learning_rate": 0.5}, {"seed": 3}, {"train__num_epochs": 2.0}]
    assert {key(**each) for each in same} == {key()}
    other = [{"train__global_batch_size": 32}, {"model__width_multiplier": 0.5}]
    assert len({key(), *(key(**each) for each in other)}) == 3
