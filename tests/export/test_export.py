"""Exported files, run by the runtimes they are for, against JAX and the integer executor."""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from quantize import small

from mobilenet import architecture
from mobilenet import config as config_lib
from mobilenet.export import litert, onnx, operations, runtimes, stablehlo, tflite_writer, verify
from mobilenet.export.operations import ExportError
from mobilenet.models.mobilenet_v2 import MobileNetV2
from mobilenet.quantize import integer, lowering, tflite_file

RUNTIMES = ("ai_edge_litert", "onnx", "onnxruntime")
METADATA = {"labels": ["a", "b"], "preprocessing": {"mean": [0.5]}}


@pytest.fixture(autouse=True)
def runtimes_are_there(request: pytest.FixtureRequest):
    missing = [name for name in RUNTIMES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")


@functools.cache
def lowered(scheme: str = "w8a8") -> integer.Graph:
    changes: dict[str, Any] = {
        "w8a8": {},
        "w4a8": {"weights": {"bits": 4}},
        "per_tensor": {
            "weights": {"per_channel": False},
            "activations": {"symmetric": True, "ranges": "fixed"},
        },
        "affine": {"weights": {"symmetric": False}},
        "a6": {"activations": {"bits": 6}},
        "a12": {"activations": {"bits": 12}},
        "sigmoid": {},
        "hard_sigmoid": {},
    }[scheme]
    gate = scheme if "sigmoid" in scheme else ""
    return lowering.lower(*small.quantized(*small.trained(gate), **changes), small.SHAPE)


def pictures(count: int = 16) -> np.ndarray:
    return small.digits()[0][-count:]


def grouped(model: MobileNetV2) -> MobileNetV2:
    return model.clone(conv_form="grouped")


# ---------------------------------------------------------------------------------------------
# Float
# ---------------------------------------------------------------------------------------------


def random_network(name: str, **changes: Any) -> tuple[Any, Any]:
    """A network of 16 pixels with random weights and statistics."""
    config = config_lib.get_config()
    config.model.name, config.model.conv_form = name, "grouped"
    config.model.update(changes)
    network = architecture.build_model(config, 10)
    generator = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        kind = path[-1].key
        if kind == "kernel":
            x = generator.normal(size=leaf.shape) * 1.4 / np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            x = generator.normal(1.0 if kind in ("var", "scale") else 0.0, 0.2, leaf.shape)
        return (np.abs(x) if kind == "var" else x).astype(np.float32)

    image = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)
    return network, jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mobilenet_v2", {"width_multiplier": 0.1, "padding": "SYMMETRIC"}),
        ("mobilenet_v2", {"width_multiplier": 0.1, "se_ratio": 0.25, "activation": "hard_swish"}),
        ("mobilenet_v1", {"width_multiplier": 0.1}),
        ("mobilenet_v3_small", {"width_multiplier": 0.25}),
        ("resnet18", {"width_multiplier": 0.1, "padding": "SYMMETRIC"}),
    ],
    ids=["v2", "v2_se", "v1", "v3", "resnet"],
)
def test_float_networks_compute_the_same_everywhere(
    name: str, changes: dict[str, Any], tmp_path: Path
):
    network, variables = random_network(name, **changes)

    def apply(images: Any) -> Any:
        return network.apply(variables, images, False)

    images = np.random.default_rng(1).normal(size=(3, 16, 16, 3)).astype(np.float32)
    wanted = np.asarray(jax.jit(apply)(images))
    program = operations.trace(apply, (16, 16, 3))
    # Normalisation is part of the convolutions, and clips of what they follow.
    kinds = {operation.kind for operation in program.operations}
    assert "clip" not in kinds and ("affine" not in kinds or "multiply" in kinds)
    litert.write_float(tmp_path / "m.tflite", program, METADATA)
    onnx.write_float(tmp_path / "m.onnx", program, METADATA)
    scale = np.abs(wanted).max()
    for run in (
        runtimes.LiteRT(tmp_path / "m.tflite").run,
        runtimes.LiteRT(tmp_path / "m.tflite", kernels="xnnpack").run,
        runtimes.OnnxRuntime(tmp_path / "m.onnx").run,
    ):
        np.testing.assert_allclose(verify.answers(run, images), wanted, atol=1e-4 * max(scale, 1))


def test_a_float_file_has_depthwise_convolutions_and_fused_activations(tmp_path: Path):
    model, variables = small.trained()
    program = operations.trace(lambda x: grouped(model).apply(variables, x, False), small.SHAPE)
    litert.write_float(tmp_path / "m.tflite", program, METADATA)
    found = verify.count_operations(tmp_path / "m.tflite")
    assert found == {
        "CONV_2D(FLOAT32,FLOAT32) RELU6": 4,
        "DEPTHWISE_CONV_2D(FLOAT32,FLOAT32) RELU6": 3,
        "CONV_2D(FLOAT32,FLOAT32)": 3,
        "ADD(FLOAT32,FLOAT32)": 2,
        "MEAN(FLOAT32,INT32)": 1,
        "FULLY_CONNECTED(FLOAT32,FLOAT32)": 1,
    }


def test_what_has_no_operation_is_named():
    with pytest.raises(ExportError, match="computes sin of"):
        operations.trace(lambda x: jax.numpy.sin(x), (4, 4, 1))


# ---------------------------------------------------------------------------------------------
# Integers in LiteRT
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "per_tensor"])
def test_an_integer_file_is_the_integer_network(scheme: str, tmp_path: Path):
    graph, path = lowered(scheme), tmp_path / "m.tflite"
    litert.write_integer(path, graph, METADATA)
    assert verify.float_operations(path) == []
    found = verify.count_operations(path)
    weights = "INT4" if scheme == "w4a8" else "INT8"
    assert found[f"DEPTHWISE_CONV_2D(INT8,{weights}) RELU6"] == 3
    assert found[f"CONV_2D(INT8,{weights}) RELU6"] == 4
    images = pictures()
    for kind, apart in verify.compare_operations(path, graph, images).items():
        assert apart["largest"] == 0, kind  # of LiteRT's own kernels, to the code
    ours = integer.run(graph, graph.quantize_input(images), rounding="builtin")
    answers = verify.answers(runtimes.LiteRT(path).run, images)
    np.testing.assert_allclose(answers, graph.dequantize_output(ours), atol=1e-5)
    xnnpack = verify.answers(runtimes.LiteRT(path, kernels="xnnpack").run, images)
    assert (xnnpack.argmax(1) == ours.argmax(1)).mean() > 0.9


def test_integer_input_and_output(tmp_path: Path):
    graph, path = lowered("per_tensor"), tmp_path / "m.tflite"
    litert.write_integer(path, graph, METADATA, integer_io=True)
    assert not any("QUANTIZE" in kind for kind in verify.count_operations(path))
    runtime, moved = runtimes.LiteRT(path), litert.signed(graph)
    assert runtime.reads_codes
    codes = moved.quantize_input(pictures())
    ours = integer.run(moved, codes, rounding="builtin")
    np.testing.assert_array_equal(verify.answers(runtime.run, codes), ours)
    # Grids of unsigned codes moved: the numbers are the same.
    before = integer.run(graph, graph.quantize_input(pictures()), rounding="builtin")
    np.testing.assert_array_equal(moved.dequantize_output(ours), graph.dequantize_output(before))


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "per_tensor"])
def test_an_integer_file_is_read_back_as_it_was(scheme: str, tmp_path: Path):
    graph, path = litert.signed(lowered(scheme)), tmp_path / "m.tflite"
    litert.write_integer(path, graph, METADATA)
    found, numbers = tflite_file.read(path), verify.tensors(path)
    assert len(found.operations) == len(graph.operations)
    for name, grid in graph.grids.items():
        read = found.grids[str(numbers[name])]
        assert (read.scale, read.zero_point) == (np.float32(grid.scale), grid.zero_point)
    for mine, theirs in zip(graph.operations, found.operations, strict=True):
        assert type(mine) is type(theirs)
        if isinstance(mine, integer.Convolution | integer.Dense):
            assert isinstance(theirs, integer.Convolution | integer.Dense)
            np.testing.assert_array_equal(theirs.kernel, mine.kernel)
            np.testing.assert_array_equal(np.ravel(theirs.kernel_scale), mine.kernel_scale)
            np.testing.assert_array_equal(theirs.bias, mine.bias)


@pytest.mark.slow
def test_squeeze_and_excitation_in_litert(tmp_path: Path):
    graph, path = lowered("sigmoid"), tmp_path / "m.tflite"
    litert.write_integer(path, graph, METADATA)
    assert verify.float_operations(path) == []
    found = verify.compare_operations(path, graph, pictures())
    # LiteRT's sigmoid has 256 steps of 1 / 256, and the gate a finer grid of its own.
    gate = next(grid for name, grid in graph.grids.items() if name.endswith("se/gate"))
    assert found.pop("lookup")["largest"] <= np.ceil(1 / 256 / gate.scale)
    assert max(apart["largest"] for apart in found.values()) <= 1


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("affine", "has affine weights"),
        ("a6", "activations of 8 bits"),
        ("a12", "activations of 8 bits"),
        ("hard_sigmoid", "the only table in TFLite files is the sigmoid"),
    ],
)
def test_what_litert_has_no_kernels_for(scheme: str, message: str, tmp_path: Path):
    with pytest.raises(ExportError, match=message):
        litert.write_integer(tmp_path / "m.tflite", lowered(scheme), METADATA)


# ---------------------------------------------------------------------------------------------
# ONNX, StableHLO, metadata
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheme", ["w8a8", "w4a8", "per_tensor", "affine", "a6", "a12", "sigmoid", "hard_sigmoid"]
)
def test_qdq_files_agree_with_the_executor(scheme: str, tmp_path: Path):
    graph, path = lowered(scheme), tmp_path / "m.onnx"
    onnx.write_integer(path, graph, METADATA)
    images = pictures(64)
    ours = graph.dequantize_output(integer.run(graph, graph.quantize_input(images)))
    theirs = verify.answers(runtimes.OnnxRuntime(path).run, images)
    assert (ours.argmax(1) == theirs.argmax(1)).mean() >= 0.95
    step = graph.grids[graph.output].scale
    assert np.abs(ours - theirs).mean() < 1.5 * step * (4 if scheme == "a12" else 1)


def test_an_archive_is_the_function_for_any_batch(tmp_path: Path):
    model, variables = small.quantized(*small.trained())
    apply = lambda images: grouped(model).apply(variables, images, False)  # noqa: E731
    path = tmp_path / "m.stablehlo"
    stablehlo.write(path, apply, small.SHAPE)
    call = stablehlo.read(path)
    for count in (1, 5):
        np.testing.assert_allclose(
            call(pictures(count)), jax.jit(apply)(pictures(count)), atol=1e-5
        )
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ExportError, match="not an archive that this JAX can load"):
        stablehlo.read(path)


@pytest.mark.parametrize("integer_io", [False, True])
def test_networks_are_called_by_names(tmp_path: Path, integer_io: bool):
    from ai_edge_litert import interpreter

    path = tmp_path / "m.tflite"
    litert.write_integer(path, lowered(), METADATA, integer_io=integer_io)
    runtime = runtimes.LiteRT(path)
    image = pictures(1)[0]
    if integer_io:
        image = litert.signed(lowered()).quantize_input(image)
    call: Any = interpreter.Interpreter(
        str(path),
        experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    ).get_signature_runner(tflite_writer.SIGNATURE)
    np.testing.assert_array_equal(call(image=image[None])["scores"], runtime.run(image))


def test_metadata_is_inside(tmp_path: Path):
    graph = lowered()
    litert.write_integer(tmp_path / "m.tflite", graph, METADATA)
    onnx.write_integer(tmp_path / "m.onnx", graph, METADATA)
    assert tflite_writer.read_metadata(tmp_path / "m.tflite") == METADATA
    assert onnx.read_metadata(tmp_path / "m.onnx") == METADATA


@pytest.mark.parametrize(
    ("module", "missing"), [(litert, "ai_edge_litert"), (onnx, "onnx"), (onnx, "onnxruntime")]
)
def test_a_missing_extra_is_named(
    module: Any, missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else find(name)
    )
    with pytest.raises(
        ExportError, match=r"`pip install -e '\.\[export\]'` in the checkout brings it"
    ):
        module.write_integer(tmp_path / "m", lowered(), METADATA)


def test_codes_of_four_bits_are_packed_low_half_first():
    assert litert.pack(np.array([1, -1, 7, -8, 3])) == bytes([0xF1, 0x87, 0x03])
