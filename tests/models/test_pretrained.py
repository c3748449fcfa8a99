"""Readers of other projects' weights: names, shapes, settings, and what they say of broken files.

That the names are really those of the other projects is shown by the slow tests next to this file,
against the projects themselves, and here by the real files where they are at hand.
"""

import csv
import json
from pathlib import Path
from typing import Any

import h5py
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from random_weights import assert_same, file_arrays, random_weights, write_legacy

from mobilenet.models import pretrained
from mobilenet.models.pretrained import fit, keras, native, pytorch, state_dict, tflite
from mobilenet.models.pretrained.weights import PretrainedError, Weights, shape_problems

SHARED = Path(__file__).parents[2].parent / "shared"
BACKBONE = SHARED / "weights" / "mobilenet_v2_0.35_224_no_top"
INT8 = SHARED / "weights" / "mobilenet_v2_1.0_224_imagenet_int8"


def torch_arrays(weights: Weights, names: str) -> dict[str, np.ndarray]:
    return file_arrays(weights, lambda found: pytorch.slots(found, pytorch.NAMES[names]))


def keras_arrays(weights: Weights) -> dict[str, np.ndarray]:
    return file_arrays(weights, keras.slots)


def write_state_dict(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    path.write_bytes(state_dict.dumps({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
    return path


def write_keras3(path: Path, weights: Weights, *, named: bool) -> Path:
    """As Keras 3 writes `.weights.h5`: groups by class and number, variables by number."""
    arrays = file_arrays(weights, keras.numbered_slots)
    layer_names = [name.split("/")[0] for name in keras_arrays(weights)]
    with h5py.File(path, "w") as file:
        for (name, array), layer in zip(arrays.items(), layer_names, strict=True):
            group, variable = name.split("/")
            variables = file.require_group(f"layers/{group}/vars")
            order = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
            number = order.index(variable) - (2 if "batch" in group else 0)
            variables.create_dataset(str(number), data=array)
            if named:
                variables.attrs["name"] = layer
        file.require_group("layers/add/vars")  # layers without variables have a group too
    return path


def topology(
    pads: list[list[int]] | None, size: int | None, epsilon: float = 1e-3, maximum: float = 6.0
) -> dict[str, Any]:
    """What Keras says of the layers that matter: input, padding, strides, epsilon, ReLU."""
    shape = [None, size, size, 3]
    layers: list[tuple[str, dict[str, Any]]] = [("InputLayer", {"batch_input_shape": shape})]
    for number in range(5):
        if pads is not None:
            layers.append(("ZeroPadding2D", {"padding": [pads[number], pads[number]]}))
        padding = "same" if pads is None else "valid"
        layers.append(("DepthwiseConv2D", {"strides": [2, 2], "padding": padding}))
        layers.append(("BatchNormalization", {"epsilon": epsilon}))
        layers.append(("ReLU", {"name": "relu", "max_value": maximum}))
    found = [{"class_name": name, "config": config} for name, config in layers]
    return {"class_name": "Model", "config": {"layers": found}}


def write_tfjs(path: Path, weights: Weights, model: dict[str, Any]) -> Path:
    """A TF.js layers model whose tensors are spread over two shards."""
    arrays = keras_arrays(weights)
    tensors = [
        {"name": name, "shape": list(array.shape), "dtype": "float32"}
        for name, array in arrays.items()
    ]
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
    (path.parent / "a.bin").write_bytes(data[:1001])
    (path.parent / "b.bin").write_bytes(data[1001:])
    manifest = [{"paths": ["a.bin", "b.bin"], "weights": tensors}]
    content = {"format": "layers-model", "modelTopology": model, "weightsManifest": manifest}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("names", list(pytorch.NAMES))
@pytest.mark.parametrize("width", [0.35, 1.4])
def test_pytorch_names_are_read_to_the_last_bit(names: str, width: float, tmp_path: Path):
    weights = random_weights(width)
    found = pretrained.read(
        names, write_state_dict(tmp_path / "model.pth", torch_arrays(weights, names))
    )
    assert_same(found, weights)
    tensorflow = names == "huggingface"
    assert found.settings == {
        "model.width_multiplier": width,
        "model.num_classes": 7,
        "model.padding": "SAME" if tensorflow else "SYMMETRIC",
        "model.bn_epsilon": 1e-3 if tensorflow else 1e-5,
        "data.image_size": 224,
        "data.normalization": "symmetric" if tensorflow else "imagenet",
        "data.crop_fraction": 0.875,
    }
    assert found.mean == ((0.5,) * 3 if tensorflow else (0.485, 0.456, 0.406))
    assert found.source.startswith(f"{names} model.pth, sha256 ") and len(found.source) > 80


def test_names_are_those_that_users_know():
    weights = random_weights(1.0, 1000)
    wanted = {
        "torchvision": {
            "features.0.0.weight": (32, 3, 3, 3),
            "features.1.conv.0.0.weight": (32, 1, 3, 3),
            "features.1.conv.1.weight": (16, 32, 1, 1),
            "features.2.conv.1.0.weight": (96, 1, 3, 3),
            "features.17.conv.3.running_var": (320,),
            "features.18.0.weight": (1280, 320, 1, 1),
            "classifier.1.weight": (1000, 1280),
        },
        "timm": {
            "conv_stem.weight": (32, 3, 3, 3),
            "blocks.0.0.conv_pw.weight": (16, 32, 1, 1),
            "blocks.6.0.bn3.running_mean": (320,),
            "conv_head.weight": (1280, 320, 1, 1),
            "classifier.bias": (1000,),
        },
        "huggingface": {
            "mobilenet_v2.conv_stem.conv_3x3.convolution.weight": (32, 1, 3, 3),
            "mobilenet_v2.layer.15.reduce_1x1.normalization.bias": (320,),
            "mobilenet_v2.conv_1x1.convolution.weight": (1280, 320, 1, 1),
        },
    }
    for names, tensors in wanted.items():
        arrays = torch_arrays(weights, names)
        assert len(arrays) == 52 * 5 + 2
        assert {name: arrays[name].shape for name in tensors} == tensors
    arrays = keras_arrays(weights)
    assert arrays["expanded_conv_depthwise/kernel"].shape == (3, 3, 32, 1)
    assert arrays["block_16_project_BN/moving_variance"].shape == (320,)
    # torchvision's and Keras' published counts of width 1.0.
    assert sum(a.size for n, a in arrays.items() if "moving" not in n) == 3_504_872
    assert sum(a.size for a in arrays.values()) == 3_538_984


@pytest.mark.parametrize("depth", [(1.1, 1.2), (1.2, 1.4)])
def test_timms_deeper_networks_are_read(depth: tuple[float, float], tmp_path: Path):
    settings, _ = list(pytorch.timm_deep_networks())[depth == (1.2, 1.4)]
    weights = random_weights(1.0, blocks=settings["model.blocks"])
    found = pretrained.read(
        "timm", write_state_dict(tmp_path / "m.pth", torch_arrays(weights, "timm"))
    )
    assert_same(found, weights)
    # The parameters that timm counts with 1,000 classes.
    size = sum(array.size for array in torch_arrays(weights, "timm").values())
    statistics = sum(a.size for n, a in torch_arrays(weights, "timm").items() if "running" in n)
    published = {(1.1, 1.2): 4_516_520, (1.2, 1.4): 5_831_144}
    assert size - statistics + 993 * 1281 == published[depth]


def test_huggingfaces_configuration_is_read_and_other_networks_refused(tmp_path: Path):
    weights = random_weights(0.5, shrink_head=True)
    path = write_state_dict(tmp_path / "pytorch_model.bin", torch_arrays(weights, "huggingface"))
    config = {
        "tf_padding": False,
        "layer_norm_eps": 0.002,
        "image_size": 160,
        "id2label": {str(i): f"name {i}" for i in range(7)},
        "output_stride": 32,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = pretrained.read("huggingface", path)
    assert_same(found, weights)
    assert found.settings["model.shrink_head"] is True
    assert found.settings["model.padding"] == "SYMMETRIC"
    assert found.settings["model.bn_epsilon"] == 0.002
    assert found.settings["data.image_size"] == 160
    assert found.class_names == tuple(f"name {i}" for i in range(7))
    (tmp_path / "config.json").write_text(json.dumps({**config, "output_stride": 16}))
    with pytest.raises(PretrainedError, match="output_stride 16; this project's network has 32"):
        pretrained.read("huggingface", path)


def test_huggingfaces_base_model_is_a_feature_extractor(tmp_path: Path):
    weights = random_weights(0.35, 0)
    arrays = {
        name.removeprefix("mobilenet_v2."): array
        for name, array in torch_arrays(weights, "huggingface").items()
    }
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
    found = pretrained.read("huggingface", path)
    assert_same(found, weights)
    assert found.settings["model.num_classes"] == 0


@pytest.mark.parametrize("layout", ["keras3", "keras3_numbered", "legacy", "legacy_model", "tfjs"])
def test_keras_files_are_read_to_the_last_bit(layout: str, tmp_path: Path):
    weights = random_weights(0.5)
    model = topology(None, 160, epsilon=2e-3)
    if layout.startswith("keras3"):
        path = write_keras3(tmp_path / "m.weights.h5", weights, named=layout == "keras3")
    elif layout == "tfjs":
        path = write_tfjs(tmp_path / "model.json", weights, model)
    else:
        known = model if layout == "legacy_model" else None
        path = write_legacy(tmp_path / "m.h5", weights, known)
    found = pretrained.read("tfjs" if layout == "tfjs" else "keras", path)
    assert_same(found, weights)
    described = layout in ("legacy_model", "tfjs")
    assert found.settings["model.padding"] == "SAME"
    assert found.settings["model.bn_epsilon"] == (2e-3 if described else 1e-3)
    assert found.settings["data.image_size"] == (160 if described else 224)
    assert found.settings["data.normalization"] == "symmetric"
    assert found.mean == found.std == (0.5, 0.5, 0.5) and not found.notes


EVEN, ODD = [0, 1], [1, 1]


@pytest.mark.parametrize(
    ("pads", "size", "padding", "noted"),
    [
        (None, 224, "SAME", False),
        (None, None, "SAME", False),
        ([EVEN] * 5, 224, "SAME", False),
        ([EVEN] * 5, None, "SAME", True),
        ([ODD] * 5, 224, "SYMMETRIC", False),
        # 97 -> 49 -> 25 -> 13 -> 7: every size is odd, and both conventions are one.
        ([ODD] * 5, 97, "SAME", False),
        # 100 -> 50 -> 25 -> 13 -> 7
        ([EVEN, EVEN, ODD, ODD, ODD], 100, "SAME", False),
    ],
)
def test_keras_padding_is_read_from_its_layers(
    pads: list[list[int]] | None, size: int | None, padding: str, noted: bool, tmp_path: Path
):
    path = write_legacy(tmp_path / "m.h5", random_weights(0.35), topology(pads, size))
    found = pretrained.read("keras", path)
    assert found.settings["model.padding"] == padding
    assert found.settings["data.image_size"] == (size or 224)
    assert bool(found.notes) == noted


def test_keras_layers_that_are_not_ours_are_refused(tmp_path: Path):
    weights = random_weights(0.35)
    path = tmp_path / "m.h5"
    with pytest.raises(PretrainedError, match=r"pad \[\(0, 1\), \(1, 1\), .* at stride 2"):
        pretrained.read("keras", write_legacy(path, weights, topology([EVEN, *[ODD] * 4], 224)))
    with pytest.raises(PretrainedError, match="relu is a ReLU with maximum None; .* has ReLU6"):
        pretrained.read("keras", write_legacy(path, weights, topology(None, 224, maximum=None)))  # pyright: ignore[reportArgumentType]


def test_this_projects_files_say_everything(tmp_path: Path):
    weights = random_weights(
        0.35, blocks=((1, 8, 1, 1), (3, 16, 2, 2)), stage_strides=(1, 2), se_ratio=None
    )
    path = tmp_path / "w.safetensors"
    path.write_bytes(native.dumps(weights))
    found = pretrained.read("safetensors", path)
    assert_same(found, weights)
    assert found.settings == weights.settings
    assert (found.mean, found.std, found.class_names) == (weights.mean, weights.std, None)
    wide = native.flatten({"params": weights.params})
    wide = {name: array.astype(np.float64) for name, array in wide.items()}
    safetensors.numpy.save_file(wide, path, {native.KEY: native.describe(weights)})
    with pytest.raises(PretrainedError, match="is of type float64, not float32"):
        pretrained.read("safetensors", path)
    with pytest.raises(PretrainedError, match="metadata of .* is damaged: KeyError: 'class_names'"):
        safetensors.numpy.save_file(
            {"params/a": np.zeros(1, np.float32)}, path, {"mobilenet": "{}"}
        )
        pretrained.read("safetensors", path)
    with pytest.raises(PretrainedError, match="--from=torchvision, timm or huggingface"):
        safetensors.numpy.save_file({"a": np.zeros(1, np.float32)}, path)
        pretrained.read("safetensors", path)


def test_problems_are_named_and_counted():
    found = {f"x{i}": (1,) for i in range(7)} | {"a": (2, 3)}
    assert shape_problems(found, {"a": (3, 2), "b": (1,)}, most=2) == (
        "missing: b; unexpected: x0 [1], x1 [1], and 5 more; of the wrong shape: a [2, 3] instead "
        "of [3, 2]"
    )
    assert shape_problems(found, found) == ""


def test_renamed_missing_and_misshapen_tensors_are_named(tmp_path: Path):
    arrays = torch_arrays(random_weights(0.5), "torchvision")
    renamed = {k.replace("features.3.conv.2.", "features.3.conv.9."): v for k, v in arrays.items()}
    path = write_state_dict(tmp_path / "m.pth", renamed)
    with pytest.raises(
        PretrainedError,
        match=r"nearest is width 0\.5 \(261 of 262 tensors fit\): missing: "
        r"features\.3\.conv\.2\.weight; unexpected: features\.3\.conv\.9\.weight \[16, 96, 1, 1\]",
    ):
        pretrained.read("torchvision", path)
    other = torch_arrays(random_weights(0.75), "torchvision")
    stage = {k: other[k] if k.startswith("features.5.") else v for k, v in arrays.items()}
    with pytest.raises(
        PretrainedError,
        match=r"of the wrong shape: features\.5\.conv\.0\.0\.weight \[144, 24, 1, 1\] instead of "
        r"\[96, 16, 1, 1\], .* and 10 more\.",
    ):
        pretrained.read("torchvision", write_state_dict(path, stage))
    del arrays["features.0.0.weight"]
    with pytest.raises(PretrainedError, match=r"missing: features\.0\.0\.weight\.$"):
        pretrained.read("torchvision", write_state_dict(path, arrays))


def test_names_of_another_library_are_recognised(tmp_path: Path):
    path = write_state_dict(tmp_path / "m.pth", torch_arrays(random_weights(), "timm"))
    with pytest.raises(PretrainedError, match="has timm's names, not torchvision's; .*--from=timm"):
        pretrained.read("torchvision", path)
    write_state_dict(path, {"layer1.0.conv1.weight": np.zeros((64, 64, 3, 3), np.float32)})
    with pytest.raises(
        PretrainedError, match=r"names \(0 of 260 tensors fit\): missing: .*255 more"
    ):
        pretrained.read("torchvision", path)


def test_integers_are_no_weights(tmp_path: Path):
    arrays = torch_arrays(random_weights(0.35, 0), "timm")
    arrays["bn1.weight"] = np.zeros(arrays["bn1.weight"].shape, np.int64)
    with pytest.raises(PretrainedError, match=r"bn1\.weight is of type int64"):
        pretrained.read("timm", write_state_dict(tmp_path / "m.pth", arrays))


def test_truncated_and_foreign_files_say_so(tmp_path: Path):
    weights = random_weights(0.35, 0)
    h5 = write_keras3(tmp_path / "m.weights.h5", weights, named=True)
    safe = tmp_path / "m.safetensors"
    safe.write_bytes(native.dumps(weights))
    tfjs = write_tfjs(tmp_path / "model.json", weights, topology(None, 224))
    for path in (h5, safe, tmp_path / "b.bin"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    for file_format, path, message in (
        ("keras", h5, "m.weights.h5 is truncated, damaged or not a file of Keras weights"),
        ("safetensors", safe, "m.safetensors is truncated, damaged or not a .safetensors file"),
        ("timm", safe, "m.safetensors is truncated, damaged or not a .safetensors file"),
        ("tfjs", tfjs, r"a\.bin, b\.bin of model\.json is truncated: [\d,]+ bytes end within"),
        ("tfjs", safe, "truncated, damaged or not a TF.js model"),
        ("tflite", safe, "not a TFLite file: it has no TFL3 at byte 4"),
        ("onnx", safe, "'onnx' is not known; allowed are keras, tfjs"),
        ("keras", tmp_path, "is a directory; give the file in it"),
        ("keras", tmp_path / "none.h5", "none.h5 does not exist"),
    ):
        with pytest.raises(PretrainedError, match=message):
            pretrained.read(file_format, path)
    (tmp_path / "b.bin").unlink()
    with pytest.raises(PretrainedError, match="names the shard b.bin, which is not next to it"):
        pretrained.read("tfjs", tfjs)


def test_padding_conventions():
    assert fit.padding_convention([(224, 0, 1), (7, 1, 1)]) == "SAME"
    assert fit.padding_convention([(224, 1, 1), (7, 1, 1)]) == "SYMMETRIC"
    assert fit.padding_convention([(7, 1, 1)]) == "SAME"
    assert fit.padding_convention([(7, 0, 1)]) is None


@pytest.fixture
def backbone() -> Path:
    if not BACKBONE.is_dir():
        pytest.skip("the real weights are not at hand")
    return BACKBONE / "model.json"


@pytest.fixture
def int8() -> Path:
    if not INT8.is_dir():
        pytest.skip("the real weights are not at hand")
    return INT8


def test_the_real_backbone_is_read(backbone: Path):
    found = pretrained.read("tfjs", backbone)
    assert found.settings["model.width_multiplier"] == 0.35
    assert found.settings["model.num_classes"] == 0
    assert found.settings["model.padding"] == "SAME" and not found.notes
    # The digest and the count of its ATTRIBUTION.md.
    assert found.source.endswith("a5bd72d9b8372b5088a902a8a"[-17:])
    sizes = [array.size for array in native.flatten(found.params).values()]
    sizes += [array.size for array in native.flatten(found.batch_stats).values()]
    assert (len(sizes), sum(sizes)) == (260, 410_208)


@pytest.mark.parametrize(
    "name", ["tf2_mobilenet_v2_1.0_224_ptq.tflite", "mobilenet_v2_1.0_224_quant.tflite"]
)
def test_real_int8_weights_are_dequantised(int8: Path, name: str):
    found = pretrained.read("tflite", int8 / name)
    assert found.settings["model.num_classes"] == 1001
    assert found.settings["model.padding"] == "SAME"
    assert found.settings["data.image_size"] == 224
    kernel = found.params["blocks_5_1"]["depthwise"]["conv"]["kernel"]
    assert kernel.shape == (3, 3, 1, 960) and kernel.dtype == np.float32
    if "ptq" in name:
        # One scale a channel, no zero point: the largest weight of each is +-127 of its steps.
        steps = np.abs(kernel).max((0, 1, 2)) / 127
        assert len(np.unique(steps)) > 900
    else:
        # One scale for all: codes 1 to 255, as quantisation-aware training leaves out code 0.
        steps = (kernel.max() - kernel.min()) / 254
    np.testing.assert_allclose(kernel / steps, np.round(kernel / steps), atol=1e-3)
    bn, stats = found.params["stem"]["bn"], found.batch_stats["stem"]["bn"]
    np.testing.assert_array_equal(bn["scale"], 1)
    np.testing.assert_array_equal(stats["mean"], 0)
    # The identity to the last bit: variance plus epsilon is 1 in float32.
    epsilon = jnp.float32(found.settings["model.bn_epsilon"])
    np.testing.assert_array_equal(jnp.asarray(stats["var"]) + epsilon, 1)
    assert "dequantised" in found.notes[0]


def test_damaged_tflite_files_are_refused(int8: Path, tmp_path: Path):
    data = (int8 / "mobilenet_v2_1.0_224_quant.tflite").read_bytes()
    path = tmp_path / "m.tflite"
    # What follows the last operation (names, labels) is not read, and may be missing.
    for part in (9, 100, len(data) // 2, len(data) - 100_000):
        path.write_bytes(data[:part])
        with pytest.raises(PretrainedError, match="m.tflite is truncated"):
            pretrained.read("tflite", path)


def test_graphs_that_are_wired_otherwise_are_refused(int8: Path):
    file = "m.tflite"
    graph = tflite.read_graph((int8 / "mobilenet_v2_1.0_224_quant.tflite").read_bytes(), file)
    _, plan = fit.planned_network({})
    assert tflite.check(graph, plan, 1001, file) == "SAME"

    def changed(number: int, **fields: Any) -> tflite.Graph:
        convolutions = list(graph.convolutions)
        convolutions[number] = convolutions[number]._replace(**fields)
        return graph._replace(convolutions=convolutions)

    last = max(graph.sums)
    others = {total: terms for total, terms in graph.sums.items() if total != last}
    for wrong, message in (
        (changed(2, relu6=True), "at the position of blocks_0_0/project, has relu6 True"),
        (
            changed(4, strides=1),
            "at the position of blocks_1_0/depthwise, has strides 1 instead of 2",
        ),
        (changed(5, source=1), "at the position of blocks_1_0/project, has input 1"),
        (changed(4, pads=(112, 1, 1)), r"pads \(0, 1\), \(1, 1\), .* at stride 2"),
        (changed(1, pads=(112, 0, 1)), r"convolution 1 pads \(0, 1\) at stride 1"),
        (graph._replace(sums=others), "blocks_5_2 has no shortcut"),
        (graph._replace(sums={**graph.sums, 999: (1, 2)}), "11 sums instead of 10"),
    ):
        with pytest.raises(PretrainedError, match=message):
            tflite.check(wrong, plan, 1001, file)


@pytest.mark.slow
def test_dequantised_networks_classify_as_the_int8_files(int8: Path):
    """A check of parity: these photographs were probably in the networks' training data."""
    from mobilenet.benchmark import parity
    from mobilenet.data import images

    folder = SHARED / "images" / "imagenet_samples"
    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    views = np.stack(
        [images.load_eval_view((folder / row["path"]).read_bytes(), size=224) for row in rows]
    )
    labels = np.array([int(row["class_index"]) + 1 for row in rows])  # after the background

    def score(name: str) -> tuple[float, float]:
        weights = pretrained.read("tflite", int8 / name)
        mean, std = np.array(weights.mean, np.float32), np.array(weights.std, np.float32)
        shown = (views.astype(np.float32) / 255 - mean) / std
        logits = np.concatenate(
            [parity.logits(weights, shown[start : start + 50]) for start in range(0, 200, 50)]
        )
        hits = np.argsort(-logits, axis=1, kind="stable")[:, :5] == labels[:, None]
        return 100 * hits[:, 0].mean(), 100 * hits.any(axis=1).mean()

    top1, top5 = score("tf2_mobilenet_v2_1.0_224_ptq.tflite")
    # The TFLite interpreter's, of the int8 file.
    assert abs(top1 - 92.5) <= 1.5 and abs(top5 - 99.5) <= 1.5
    top1, top5 = score("mobilenet_v2_1.0_224_quant.tflite")
    assert abs(top1 - 89.5) <= 3 and abs(top5 - 98.5) <= 1.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"model.num_classes": 10**9}}, "says 1000000000 classes, .* has 7"),
        (
            {"settings": {"model.blocks": [[1, 8, 10**9, 1]]}},
            "model.blocks is not a block table for",
        ),
        ({"settings": {"model.blocks": 3}}, "model.blocks is not a block table for"),
        ({"settings": {"data.image_size": 10**6}}, "images are 1000000 pixels large"),
        ({"settings": {"data.data_dir": "/"}}, "it sets 'data.data_dir', which is not a setting"),
        ({"settings": {"pretrained": "x"}}, "it sets 'pretrained', which is not a setting"),
        ({"class_names": ["a"]}, "has 1 names for 7 classes"),
        ({"mean": [float("nan")] * 3}, "its mean is .* for images of 3 channels"),
        ({"std": [1, 1]}, "its std is .* for images of 3 channels"),
        ({"std": [1, 0, 1]}, "its std is .* must be above 0"),
    ],
)
@pytest.mark.parametrize("names", ["safetensors", "torchvision"])
def test_what_a_file_says_of_itself_is_checked(
    names: str, changes: dict[str, Any], message: str, tmp_path: Path
):
    weights, path = random_weights(0.1), tmp_path / "w.safetensors"
    described = json.loads(native.describe(weights))
    settings = {**described["settings"], **changes.get("settings", {})}
    text = json.dumps({**described, **changes, "settings": settings})
    arrays = native.flatten({"params": weights.params, "batch_stats": weights.batch_stats})
    if names == "torchvision":
        arrays = torch_arrays(weights, names)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors.numpy.save_file(arrays, path, {native.KEY: text})
    with pytest.raises(PretrainedError, match=message):
        pretrained.read(names, path)


def test_metadata_is_no_bottomless_pit(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    arrays = {"params/a": np.zeros(1, np.float32)}
    safetensors.numpy.save_file(arrays, path, {native.KEY: "[" * 100_000})
    with pytest.raises(PretrainedError, match="metadata of .* is damaged: RecursionError"):
        pretrained.read("safetensors", path)
    arrays["params/a/b"] = np.zeros(1, np.float32)
    safetensors.numpy.save_file(arrays, path, {native.KEY: "{}"})
    with pytest.raises(PretrainedError, match="damaged: params/a/b lies below another tensor"):
        pretrained.read("safetensors", path)


def test_one_output_is_no_classifier(tmp_path: Path):
    path = write_state_dict(tmp_path / "m.pth", torch_arrays(random_weights(0.1, 1), "torchvision"))
    with pytest.raises(PretrainedError, match="has one output, such as a sigmoid of two classes"):
        pretrained.read("torchvision", path)


def test_files_larger_than_any_network_are_not_read(tmp_path: Path):
    path = tmp_path / "m.pth"
    with open(path, "wb") as file:
        file.truncate(5 << 30)  # takes no place on the disk
    with pytest.raises(PretrainedError, match="has 5,368,709,120 bytes, more than any MobileNetV2"):
        pretrained.read("torchvision", path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "not a configuration of Hugging Face"),
        ({"layer_norm_eps": "x"}, "config.json is damaged: ValueError"),
        ({"id2label": [1]}, "config.json is damaged: AttributeError"),
        ({"image_size": [224]}, "config.json is damaged: TypeError"),
        ({"image_size": 10**6}, "its images are 1000000 pixels large"),
    ],
)
def test_a_damaged_configuration_next_to_a_file_is_said(config: Any, message: str, tmp_path: Path):
    arrays = torch_arrays(random_weights(0.1), "huggingface")
    path = write_state_dict(tmp_path / "m.bin", arrays)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PretrainedError, match=message):
        pretrained.read("huggingface", path)
