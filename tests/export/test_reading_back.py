"""Files of `mobilenet export` come back as the run that they were: with its images and names."""

import copy
import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantize import small
from random_weights import random_weights, small_weights

from mobilenet import config as config_lib
from mobilenet import conversion, deployment, inference, rundir
from mobilenet.export import litert, tflite_writer
from mobilenet.models import pretrained
from mobilenet.models.pretrained.weights import PretrainedError, Weights
from mobilenet.quantize import lowering

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ai_edge_litert") is None, reason="LiteRT is not installed"
)


def exported(weights: Weights, directory: Path, labels: list[str]) -> Path:
    """A run of the weights, and the TFLite file that `export` writes of it."""
    conversion.write_run(weights, directory / "run", labels=labels)
    path = directory / "m.tflite"
    deployment.Deployment(directory / "run").write("litert", path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> deployment.Deployment:
    workdir = tmp_path_factory.mktemp("runs") / "run"
    conversion.write_run(small_weights(), workdir, labels=["a", "b", "c"])
    return deployment.Deployment(workdir)


def probabilities(workdir: Path) -> np.ndarray:
    config = rundir.read_config(workdir)
    predictor = inference.Predictor(
        config, inference.read_checkpoint(workdir).eval_variables, workdir
    )
    shape = (2, config.data.image_size, config.data.image_size, config.data.channels)
    return predictor(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8))


@pytest.mark.parametrize(
    ("normalization", "mean", "std", "channels", "padding"),
    [
        ("dataset", (0.3, 0.2, 0.1), (0.2, 0.3, 0.4), 3, "SYMMETRIC"),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 3, "SAME"),
        ("dataset", (0.3,), (0.2,), 1, "SAME"),
    ],
)
def test_a_file_of_ours_brings_its_images_and_its_names(
    normalization: str, mean: Any, std: Any, channels: int, padding: str, tmp_path: Path
):
    weights = small_weights(channels=channels, padding=padding)
    settings = {"data.normalization": normalization, "data.crop_fraction": 0.75}
    weights = dataclasses.replace(
        weights, settings={**weights.settings, **settings}, mean=mean, std=std
    )
    path = exported(weights, tmp_path, ["ä", "b", "c"])
    found = pretrained.read("tflite", path)
    assert (found.mean, found.std, found.class_names) == (mean, std, ("ä", "b", "c"))
    assert found.assumed == () and conversion.assumptions(found) == ()
    config = conversion.write_run(found, tmp_path / "back")
    original = rundir.read_config(tmp_path / "run")
    assert config.data == original.data and config.model.padding == padding
    assert config.model.blocks == original.model.blocks
    stored = [json.loads((tmp_path / run / "data.json").read_text()) for run in ("run", "back")]
    assert stored[0] == stored[1]
    np.testing.assert_allclose(
        probabilities(tmp_path / "back"), probabilities(tmp_path / "run"), atol=1e-4
    )


@pytest.mark.parametrize("integer_io", [False, True])
def test_an_integer_file_of_ours_brings_them_too(integer_io: bool, tmp_path: Path):
    config = config_lib.get_config()
    config.model.update(
        blocks=((1, 8, 1, 1), (4, 8, 2, 2)), stem_features=8, stem_strides=1, head_features=24
    )
    config.data.update(name="digits", image_size=8, channels=1)
    config.quantize.weights.bits = config.quantize.activations.bits = 8
    stored = {"mean": [0.25], "std": [0.5], "class_names": [f"digit {n}" for n in range(10)]}
    graph = lowering.lower(*small.quantized(*small.trained()), small.SHAPE)
    path = tmp_path / "m.tflite"
    metadata = deployment._metadata(config, stored, 10, 3)
    litert.write_integer(path, graph, metadata, integer_io=integer_io)
    found = pretrained.read("tflite", path)
    assert (found.mean, found.std) == ((0.25,), (0.5,))
    assert found.class_names == tuple(stored["class_names"])
    assert found.assumed == () and "dequantised" in found.notes[0]
    config = conversion.write_run(found, tmp_path / "run")
    assert not config_lib.is_quantized(config) and config.data.name == "digits"
    assert config.data.channels == 1 and config.data.normalization == "dataset"


def test_a_strangers_file_says_what_was_assumed(tmp_path: Path):
    path = exported(random_weights(0.1, 3), tmp_path, ["a", "b", "c"])
    # Without its metadata it is anybody's.
    path.write_bytes(
        path.read_bytes().replace(tflite_writer.METADATA.encode() + b"\0", b"another\0\0\0")
    )
    found = pretrained.read("tflite", path)
    assert found.class_names is None
    first, second = conversion.assumptions(found)
    assert "data.normalization=symmetric, data.crop_fraction=0.875" in first
    assert "no class names; assumed are 0 to 2" in second
    said = {"data.normalization": "imagenet", "data.crop_fraction": 1.0}
    assert conversion.assumptions(found, ["a", "b", "c"], said) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("labels"), "damaged: KeyError: 'labels'"),
        (lambda m: m["labels"].append("d"), "has 4 names for 3 classes"),
        (lambda m: m["preprocessing"].update(std=[0, 1, 1]), "its std is .* must be above 0"),
        (lambda m: m["preprocessing"].update(mean=["x"]), "damaged: ValueError"),
        (lambda m: m["config"]["model"].update(name="resnet18"), "is a resnet18; convert reads"),
        (lambda m: m["config"]["model"].update(blocks=[[1, 8, 10**9, 1]]), "not a block table"),
        (lambda m: m["config"]["model"].update(blocks=[[1, 8, 1, 1]]), "is not a MobileNetV2"),
        (lambda m: m["config"].update(data=3), "damaged: TypeError"),
    ],
)
def test_metadata_that_is_wrong_is_refused(
    change: Any, message: str, run: deployment.Deployment, tmp_path: Path
):
    metadata = copy.deepcopy(run.metadata)
    change(metadata)
    altered = copy.copy(run)
    altered.metadata = metadata
    altered.write("litert", tmp_path / "m.tflite")
    with pytest.raises(PretrainedError, match=message):
        pretrained.read("tflite", tmp_path / "m.tflite")


@pytest.mark.parametrize(("count", "outputs"), [(300, 256), (1, 10**6)])
def test_sizes_are_checked_before_anything_is_read(count: int, outputs: int, tmp_path: Path):
    """Operations may share a buffer, or declare one that is not there."""
    writer = tflite_writer.Writer()
    x = writer.tensor("image", [1, 8, 8, 256], "FLOAT32")
    writer.graph.inputs = [writer.tensor("start", [1, 8, 8, 3], "FLOAT32")]
    kernel = writer.constant("kernel", np.zeros((256, 1, 1, 256), np.float32))
    writer.graph.tensors[kernel].shape = [outputs, 1, 1, 256]
    for number in range(count):
        y = writer.tensor(f"{number}", [1, 8, 8, outputs], "FLOAT32")
        options = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
        writer.operator("CONV_2D", [x, kernel], y, 1, "Conv2DOptions", **options)
        x = y
    writer.graph.outputs = [x]
    path = tmp_path / "m.tflite"
    writer.write(path, {})
    assert path.stat().st_size < 400_000
    with pytest.raises(PretrainedError, match=r"m.tflite declares [\d,]+ bytes of numbers and"):
        pretrained.read("tflite", path)
