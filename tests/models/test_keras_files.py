"""Keras' files as users save them: a backbone within a model, archives, and files that lie."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from random_weights import assert_same, file_arrays, random_weights

from mobilenet.models import pretrained
from mobilenet.models.pretrained import keras, keras_topology
from mobilenet.models.pretrained.weights import PretrainedError

WEIGHTS = random_weights(0.1, 3)


def write(file: h5py.File, backbone: str, top: str, *, named: bool) -> None:
    """As Keras 3 writes a backbone and one dense layer: groups of numbered variables."""
    numbers = {
        "kernel": 0,
        "bias": 1,
        "gamma": 0,
        "beta": 1,
        "moving_mean": 2,
        "moving_variance": 3,
    }
    arrays = file_arrays(WEIGHTS, keras.numbered_slots)
    layers = [name.split("/")[0] for name in file_arrays(WEIGHTS, keras.slots)]
    for (name, array), layer in zip(arrays.items(), layers, strict=True):
        group, variable = name.split("/")
        place = f"{top}/{group}" if group == "dense" else f"{backbone}/{group}"
        variables = file.require_group(f"{place}/vars")
        variables.create_dataset(str(numbers[variable]), data=array)
        if named:
            variables.attrs["name"] = "my_top" if group == "dense" else layer
    file.create_dataset("optimizer/vars/0", data=np.int64(7))
    seed = file.require_group("layers/random_flip/seed_generator/vars")
    seed.create_dataset("0", data=np.zeros(2, np.uint32))
    if named:
        seed.attrs["name"] = "seed_generator"


def topology(*before: dict[str, Any], pooling: str = "GlobalAveragePooling2D") -> dict[str, Any]:
    """Keras' configuration of images of 96 pixels, layers before the network, and one of a kind."""
    entry = {"class_name": "InputLayer", "config": {"batch_shape": [None, 96, 96, 3]}}
    found = [{"class_name": "DepthwiseConv2D", "config": {"strides": [2, 2], "padding": "same"}}]
    found.append({"class_name": "BatchNormalization", "config": {"epsilon": 2e-3}})
    found.append({"class_name": pooling, "config": {"name": "pool"}})
    inner = {"class_name": "Functional", "config": {"layers": found}}
    return {"class_name": "Sequential", "config": {"layers": [entry, *before, inner]}}


def rescaling(scale: Any, offset: Any = 0.0) -> dict[str, Any]:
    return {"class_name": "Rescaling", "config": {"scale": scale, "offset": offset}}


def archive(path: Path, weights: bytes, model: Any) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("metadata.json", "{}")
        file.writestr("config.json", json.dumps(model))
        file.writestr("model.weights.h5", weights)
    return path


def weights_file(backbone: str = "layers/functional/layers", *, named: bool = True) -> bytes:
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        write(file, backbone, backbone.split("/")[0], named=named)
    return data.getvalue()


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    "backbone", ["layers", "layers/functional/layers", "base/layers", "_layer_checkpoint/m/layers"]
)
def test_a_backbone_and_one_dense_layer(backbone: str, named: bool, tmp_path: Path):
    path = tmp_path / "m.weights.h5"
    path.write_bytes(weights_file(backbone, named=named))
    found = pretrained.read("keras", path)
    assert_same(found, WEIGHTS)
    assert set(found.assumed) == {
        *("model.padding", "model.bn_epsilon", "data.image_size"),
        *("data.normalization", "data.crop_fraction"),
    }


def test_an_archive_is_opened_and_its_configuration_read(tmp_path: Path):
    path = archive(tmp_path / "m.keras", weights_file(), topology(rescaling(1 / 127.5, -1)))
    found = pretrained.read("keras", path)
    assert_same(found, WEIGHTS)
    assert found.settings["model.bn_epsilon"] == 2e-3 and found.settings["data.image_size"] == 96
    assert found.settings["data.normalization"] == "symmetric"
    assert found.assumed == ("data.crop_fraction",) and found.notes == ()
    path = archive(tmp_path / "m.keras", b"", {})
    with pytest.raises(PretrainedError, match="m.keras is truncated, damaged"):
        pretrained.read("keras", path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", "{}")
    with pytest.raises(PretrainedError, match="not one of Keras: it has no model.weights.h5"):
        pretrained.read("keras", path)


@pytest.mark.parametrize(
    ("layers", "mean", "std", "preset"),
    [
        ([rescaling(1 / 127.5, -1)], (0.5,) * 3, (0.5,) * 3, "symmetric"),
        ([rescaling(1 / 255)], (0.0,) * 3, (1.0,) * 3, "dataset"),
        ([rescaling(1 / 255), rescaling(2, -1)], (0.5,) * 3, (0.5,) * 3, "symmetric"),
        (
            [rescaling([1 / 51, 1 / 255, 1 / 255], [-1, 0, 0])],
            (0.2, 0.0, 0.0), (0.2, 1.0, 1.0), "dataset",
        ),
    ],
)  # fmt: skip
def test_images_are_normalised_as_the_model_does(
    layers: Any, mean: Any, std: Any, preset: str, tmp_path: Path
):
    found = pretrained.read(
        "keras", archive(tmp_path / "m.keras", weights_file(), topology(*layers))
    )
    np.testing.assert_allclose((found.mean, found.std), (mean, std), atol=1e-8)
    assert found.settings["data.normalization"] == preset


def test_layers_that_compute_something_else():
    unknown = {"class_name": "TrueDivide", "config": {"name": "true_divide"}}
    (note,) = keras_topology.read(topology(unknown), "m").notes
    assert "These layers were not read: true_divide (TrueDivide)." in note
    with pytest.raises(PretrainedError, match="layer pool is a GlobalMaxPooling2D; .* the mean"):
        keras_topology.read(topology(pooling="GlobalMaxPooling2D"), "m")


@pytest.mark.parametrize(
    "model", [{"config": {"layers": [3]}}, {"config": {"layers": [{"config": {}}]}}, {"config": 3}]
)
def test_a_damaged_configuration_is_said(model: Any, tmp_path: Path):
    path = archive(tmp_path / "m.keras", weights_file(), model)
    with pytest.raises(PretrainedError, match="its model's configuration cannot be read"):
        pretrained.read("keras", path)


def test_two_dense_layers_are_no_classifier(tmp_path: Path):
    path = tmp_path / "m.weights.h5"
    path.write_bytes(weights_file())
    with h5py.File(path, "a") as file:
        group = file.require_group("layers/dense_1/vars")
        group.create_dataset("0", data=np.zeros((3, 3), np.float32))
        group.attrs["name"] = "other"
    with pytest.raises(PretrainedError, match="has 2 dense layers, my_top, other; this project's"):
        pretrained.read("keras", path)


def test_sizes_are_checked_before_anything_is_read(tmp_path: Path):
    path = tmp_path / "m.weights.h5"
    with h5py.File(path, "w") as file:
        # Nothing is allocated in the file, and 5 TB when it is read.
        file.create_dataset("layers/dense/vars/0", shape=(1280, 10**9), dtype="f4")
    assert path.stat().st_size < 10_000
    with pytest.raises(PretrainedError, match=r"declares 5,120,000,000,000 bytes .* and holds"):
        pretrained.read("keras", path)
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "layers/dense/vars/0", data=np.zeros((1280, 20_000), "f4"), compression="gzip"
        )
    with pytest.raises(PretrainedError, match="declares 102,400,000 bytes"):
        pretrained.read("keras", path)
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model.weights.h5", bytes(100 << 20))
    with pytest.raises(PretrainedError, match="m.keras declares 104,857,600 bytes"):
        pretrained.read("keras", path)


def test_nothing_is_read_from_other_files(tmp_path: Path):
    secret, path = tmp_path / "secret", tmp_path / "m.weights.h5"
    secret.write_bytes(bytes(12))
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/dense/vars/0", (3,), "f4", external=[(str(secret), 0, 12)])
    with pytest.raises(PretrainedError, match="numbers of /layers/dense/vars/0 from another file"):
        pretrained.read("keras", path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["a"] = np.zeros(3)
    with h5py.File(path, "w") as file:
        file["layers"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")
    with pytest.raises(PretrainedError, match="has the link 'layers'; links are not followed"):
        pretrained.read("keras", path)


def test_a_shard_is_named_once(tmp_path: Path):
    (tmp_path / "a.bin").write_bytes(bytes(4))
    manifest = [{"paths": ["a.bin"] * 2, "weights": []}]
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"modelTopology": {}, "weightsManifest": manifest}))
    with pytest.raises(PretrainedError, match="it names a shard twice"):
        pretrained.read("tfjs", path)
