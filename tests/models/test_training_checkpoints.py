"""Weights as training scripts leave them: in dictionaries, under prefixes, other classifiers."""

import argparse
import collections
import io
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from random_weights import assert_same, file_arrays, random_weights

from mobilenet.models import pretrained
from mobilenet.models.pretrained import pytorch, state_dict
from mobilenet.models.pretrained.weights import PretrainedError

WEIGHTS = random_weights(0.1, 3)


def arrays(names: str = "torchvision") -> dict[str, np.ndarray]:
    found = file_arrays(WEIGHTS, lambda layers: pytorch.slots(layers, pytorch.NAMES[names]))
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def wrapped(content: Any, named: dict[str, dict[str, np.ndarray]]) -> bytes:
    """A file of torch.save: `content` pickled, with state dicts in place of the keys of `named`."""
    flat = {f"{key}/{name}": array for key, found in named.items() for name, array in found.items()}
    with zipfile.ZipFile(io.BytesIO(state_dict.dumps(flat))) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    # Each tensor's instructions, cut out of the flat pickle.
    stream, pieces = files["archive/data.pkl"], {}
    starts = [
        (int(position or 0), argument)
        for instruction, argument, position in pickletools.genops(stream)
        if instruction.name == "BINUNICODE" and argument in flat
    ]
    ends = [position for position, _ in starts[1:]] + [len(stream) - 2]
    for (start, name), end in zip(starts, ends, strict=True):
        pieces[name] = stream[start + 5 + len(name.encode()) : end]
    made = pickle.dumps(content, protocol=2)
    for key, found in named.items():
        items = b"".join(
            b"X"
            + len(name.encode()).to_bytes(4, "little")
            + name.encode()
            + pieces[f"{key}/{name}"]
            for name in found
        )
        marker = pickle.dumps(f"<{key}>", protocol=2)[2:-3]  # without its place in the memo
        assert marker in made
        made = made.replace(marker, b"}(" + items + b"u")
    files["archive/data.pkl"] = made
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        {"net": "<sd>", "acc": 91.5, "epoch": 3},
        {"model_state_dict": "<sd>", "optimizer_state_dict": {"state": {}, "param_groups": []}},
        {"checkpoint": {"weights": {"mine": "<sd>"}}},
        {"model": "<sd>", "args": argparse.Namespace(lr=0.1), "seen": collections.Counter("ab")},
        {"state_dict": "<sd>", "best": np.float64(0.5), "rng": np.arange(3)},
    ],
    ids=["net", "tutorial", "nested", "namespace", "numpy"],
)
def test_the_one_dictionary_of_tensors_is_found(content: Any, tmp_path: Path):
    path = tmp_path / "m.pth"
    path.write_bytes(wrapped(content, {"sd": arrays()}))
    found = pretrained.read("torchvision", path)
    assert_same(found, WEIGHTS)
    assert found.notes == ()


def test_of_several_networks_the_usual_one_is_read_and_said(tmp_path: Path):
    path = tmp_path / "m.pth"
    average = {name: array + 1 for name, array in arrays().items()}
    path.write_bytes(
        wrapped({"state_dict_ema": "<ema>", "state_dict": "<sd>"}, {"sd": arrays(), "ema": average})
    )
    found = pretrained.read("torchvision", path)
    assert_same(found, WEIGHTS)
    assert found.notes == (
        "The weights under state_dict were read; the file has others under state_dict_ema.",
    )
    path.write_bytes(wrapped({"a": "<sd>", "b": "<ema>"}, {"sd": arrays(), "ema": average}))
    with pytest.raises(PretrainedError, match="several state dicts of 262 tensors, under a, b"):
        pretrained.read("torchvision", path)


@pytest.mark.parametrize("names", list(pytorch.NAMES))
@pytest.mark.parametrize("prefix", ["_orig_mod.", "model.", "module._orig_mod.", "net.backbone."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_prefix_that_all_names_share_is_taken_off(
    names: str, prefix: str, suffix: str, tmp_path: Path
):
    path = tmp_path / f"m{suffix}"
    renamed = {f"{prefix}{name}": array for name, array in arrays(names).items()}
    if suffix == ".pth":
        path.write_bytes(state_dict.dumps(renamed))
    else:
        safetensors.numpy.save_file(renamed, path)
    assert_same(pretrained.read(names, path), WEIGHTS)


@pytest.mark.parametrize("names", list(pytorch.NAMES))
@pytest.mark.parametrize("classifier", ["classifier", "fc", "head.fc", "classifier.0"])
def test_the_one_dense_layer_is_the_classifier(names: str, classifier: str, tmp_path: Path):
    path, old = tmp_path / "m.pth", "classifier.1." if names == "torchvision" else "classifier."
    found = {
        name.replace(old, f"{classifier}.") if name.startswith(old) else name: array
        for name, array in arrays(names).items()
    }
    path.write_bytes(state_dict.dumps(found))
    assert_same(pretrained.read(names, path), WEIGHTS)
    del found[f"{classifier}.bias"]
    path.write_bytes(state_dict.dumps(found))
    np.testing.assert_array_equal(pretrained.read(names, path).params["classifier"]["bias"], 0)


def test_a_module_around_the_features_with_its_own_classifier(tmp_path: Path):
    path = tmp_path / "m.pth"
    found = {
        name.replace("classifier.1.", "fc.") if "classifier" in name else f"backbone.{name}": array
        for name, array in arrays().items()
    }
    found["criterion.weight"] = np.ones(3, np.float32)
    path.write_bytes(state_dict.dumps(found))
    read = pretrained.read("torchvision", path)
    assert_same(read, WEIGHTS)
    assert read.notes == (
        "These tensors do not belong to the network and were left out: criterion.weight.",
    )
    found["fc2.weight"] = np.ones((3, 3), np.float32)
    path.write_bytes(state_dict.dumps(found))
    with pytest.raises(PretrainedError, match="has 2 dense layers, fc, fc2"):
        pretrained.read("torchvision", path)


def test_what_is_not_one_network_is_refused(tmp_path: Path):
    path = tmp_path / "m.pth"
    twice = {f"{p}{n}": a for p in ("student.", "teacher.") for n, a in arrays().items()}
    path.write_bytes(state_dict.dumps(twice))
    with pytest.raises(PretrainedError, match="2 networks, under student., teacher.; save only"):
        pretrained.read("torchvision", path)
    path.write_bytes(state_dict.dumps({**arrays(), "fc.weight": np.ones((3, 3), np.float32)}))
    with pytest.raises(PretrainedError, match="2 dense layers, classifier.1, fc; this project's"):
        pretrained.read("torchvision", path)
    path.write_bytes(state_dict.dumps({f"model.{n}": a for n, a in arrays("timm").items()}))
    with pytest.raises(PretrainedError, match="timm's names, not torchvision's; .*--from=timm"):
        pretrained.read("torchvision", path)
