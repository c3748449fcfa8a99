"""Converted weights give the logits of the frameworks they come from, where these are installed.

Peers are of the extra `parity`; `.ci/run` installs what it can of them.
`mobilenet.benchmark.parity` writes the same comparison as a table.
"""

# The peers are extras; types are not checked against them.
# pyright: reportMissingImports=false, reportMissingModuleSource=false

from pathlib import Path

import numpy as np
import pytest

from mobilenet.benchmark import parity
from mobilenet.models import pretrained

# What other libraries warn of is theirs to repair.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TOLERANCE = 1e-4


def need(framework: str) -> None:
    if not parity.installed(framework):
        pytest.skip(f"{', '.join(parity.PACKAGES[framework])} are not installed")


# The frameworks last: two of them share a compiled network.
@pytest.mark.parametrize("framework", list(parity.PEERS))
@pytest.mark.parametrize("resolution", [96, 97])
@pytest.mark.parametrize("width", parity.WIDTHS)
def test_logits_are_those_of_the_framework(width: float, resolution: int, framework: str):
    need(framework)
    row = parity.measure(framework, width, resolution)
    assert row["max_abs_difference"] <= TOLERANCE < 1 < row["logits_scale"]


@pytest.mark.parametrize("framework", list(parity.PEERS))
def test_logits_at_full_resolution(framework: str):
    need(framework)
    assert parity.measure(framework, 1.0, 224)["max_abs_difference"] <= TOLERANCE


@pytest.mark.parametrize("name", ["mobilenetv2_110d", "mobilenetv2_120d"])
def test_timms_deeper_networks(name: str, tmp_path: Path):
    need("timm")
    rng = np.random.default_rng(0)
    path, forward = parity.make_timm(name, tmp_path, rng)
    images = rng.standard_normal((2, 65, 65, 3)).astype(np.float32)
    ours, theirs = parity.logits(pretrained.read("timm", path), images), forward(images)
    # Up to 26 blocks round more than 17: 1.1e-4 was seen, where each is 7e-5 away from float64's
    # logits, which reach 8.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


def test_keras_for_any_size_pads_as_tensorflow_at_multiples_of_32_alone(tmp_path: Path):
    need("keras")
    rng = np.random.default_rng(0)
    path, forward = parity.make_keras(0.35, None, tmp_path, rng)
    weights = pretrained.read("keras", path)

    def difference(size: int) -> float:
        images = rng.standard_normal((1, size, size, 3)).astype(np.float32)
        return float(np.abs(parity.logits(weights, images) - forward(images)).max())

    assert difference(64) <= TOLERANCE
    assert difference(65) > 1e-2


@pytest.mark.parametrize("kind", ["legacy", "tflite", "tflite_float16", "tflite_int8"])
def test_other_files_of_keras(kind: str, tmp_path: Path):
    need("keras")
    import tensorflow as tf

    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (4, 64, 64, 3)).astype(np.float32)
    model, forward = parity.make_keras_model(0.35, 64, rng)
    wanted = forward(images)
    if kind == "legacy":
        path = tmp_path / "model.h5"
        model.save(path)
        found = pretrained.read("keras", path)
    else:
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        if kind != "tflite":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "tflite_float16":
            converter.target_spec.supported_types = [tf.float16]
        if kind == "tflite_int8":
            converter.representative_dataset = lambda: ([image[None]] for image in images)
        path = tmp_path / "model.tflite"
        path.write_bytes(converter.convert())
        found = pretrained.read("tflite", path)
    assert found.settings["model.padding"] == "SAME"
    assert found.settings["data.image_size"] == 64
    ours = parity.logits(found, images)
    if kind == "tflite_int8":
        # The file rounds its activations too; what is left is a likeness of the float model.
        assert np.corrcoef(ours.ravel(), wanted.ravel())[0, 1] > 0.99
    else:
        if kind != "legacy":
            wanted = interpret(path, images)  # with the file's weights, rounded to float16 or not
        assert np.abs(ours - wanted).max() <= TOLERANCE


def interpret(path: Path, images: np.ndarray) -> np.ndarray:
    """The outputs of a TFLite file of float images."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(str(path))
    interpreter.allocate_tensors()
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for image in images:
        interpreter.set_tensor(given["index"], image[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(answer["index"])[0])
    return np.stack(outputs)


def test_a_written_state_dict_is_one_of_torchvision(tmp_path: Path):
    need("torchvision")
    import torch
    from random_weights import random_weights

    from mobilenet import conversion

    weights = random_weights(0.75, 10)
    conversion.write_file(weights, tmp_path / "model.pth", "torchvision")
    module = parity.import_torchvision().models.mobilenet_v2(num_classes=10, width_mult=0.75)
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    assert list(state) == list(module.state_dict())
    module.load_state_dict(state)  # strict
    images = np.random.default_rng(0).standard_normal((2, 65, 65, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = module.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    ours = parity.logits(weights, images)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
