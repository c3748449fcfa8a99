"""Real int8 and uint8 TFLite files in the integer executor, against LiteRT where it is installed.

The files and the photographs are not part of the project; tests of them skip where they are absent.
"""

import functools
from pathlib import Path

import numpy as np
import pytest

from mobilenet.benchmark import integer as benchmark
from mobilenet.export import runtimes
from mobilenet.models.pretrained import tflite_graph
from mobilenet.models.pretrained.weights import PretrainedError
from mobilenet.quantize import integer, tflite_file

SHARED = Path(__file__).parents[2].parent / "shared"
INT8 = SHARED / "weights" / "mobilenet_v2_1.0_224_imagenet_int8"
PICTURES = SHARED / "images" / "imagenet_samples"
PTQ, QAT = "tf2_mobilenet_v2_1.0_224_ptq.tflite", "mobilenet_v2_1.0_224_quant.tflite"
FILES = pytest.mark.parametrize("name", [PTQ, QAT])


@pytest.fixture
def int8() -> Path:
    if not INT8.is_dir():
        pytest.skip("the real weights are not at hand")
    return INT8


@pytest.fixture
def images() -> Path:
    if not PICTURES.is_dir():
        pytest.skip("the photographs are not at hand")
    if not benchmark.installed():
        pytest.skip("LiteRT is not installed")
    return PICTURES


@functools.cache
def graph_of(name: str) -> integer.Graph:
    return tflite_file.read(INT8 / name)


@FILES
def test_what_a_file_becomes(int8: Path, name: str):
    graph = graph_of(name)
    kinds = [runtimes.kind(operation) for operation in graph.operations]
    assert kinds.count("convolution") == 35 and kinds.count("depthwise") == 17
    assert kinds.count("add") == 10 and kinds[-1] == "dense"
    assert graph.input_shape == (224, 224, 3)
    first = next(op for op in graph.operations if isinstance(op, integer.Convolution))
    assert first.kernel.shape == (3, 3, 3, 32) and first.strides == 2
    assert first.pads == (0, 1, 0, 1)
    if name == PTQ:
        assert kinds[0] == "rescale" and kinds.count("mean (offset)") == 1
        assert np.shape(first.kernel_scale) == (32,) and not np.any(first.kernel_zero_point)
        assert first.kernel.dtype == np.int8 and (first.low, first.high) == (-128, 127)
    else:
        assert kinds[0] == "convolution" and kinds.count("mean (pool)") == 1
        assert np.shape(first.kernel_scale) == (1,) and first.kernel_zero_point == 122
        assert first.kernel.dtype == np.uint8 and (first.low, first.high) == (0, 255)
    assert first.bias is not None and first.bias.dtype == np.int32
    # Codes and grid are those that the dequantised weights came from.
    found = tflite_graph.load_graph(int8 / name).convolutions[0]
    real = (first.kernel.astype(int) - first.kernel_zero_point) * first.kernel_scale
    np.testing.assert_allclose(real, found.kernel, rtol=2e-7)


def test_files_that_are_no_integer_network(int8: Path, tmp_path: Path):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"nothing")
    with pytest.raises(PretrainedError, match="m.tflite is not a TFLite file"):
        tflite_file.read(path)
    data = (int8 / PTQ).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(PretrainedError, match="m.tflite is truncated"):
        tflite_file.read(path)


def test_graphs_that_are_no_integer_network(int8: Path):
    graph = tflite_graph.load_graph(int8 / PTQ)

    def refused(changed: tflite_graph.Graph, message: str) -> None:
        with pytest.raises(PretrainedError, match=message):
            tflite_file._Translation(changed, "m.tflite").graph()

    first, second = graph.convolutions[:2]
    tensors = dict(graph.tensors)
    tensors[second.target] = tensors[second.target]._replace(kind="FLOAT32", scale=np.zeros(0))
    refused(graph._replace(tensors=tensors), "a tensor 111 of FLOAT32 with 0 scales")
    floats = [first._replace(integers=None), *graph.convolutions[1:]]
    refused(graph._replace(convolutions=floats), "m.tflite has weights that are not quantised")
    refused(graph._replace(convolutions=[]), "a RELU6 that does not belong to a convolution")
    wrong = [graph.steps[0], tflite_graph.Step("SQUEEZE_EXCITE", (109,), 110), *graph.steps[2:]]
    refused(graph._replace(steps=wrong), "m.tflite has a separate operation SQUEEZE_EXCITE")
    pool = next(step for step in graph.steps if step.kind == "MEAN")
    narrow = [s._replace(kind="AVERAGE_POOL_2D", window=(3, 3)) if s is pool else s
              for s in graph.steps]  # fmt: skip
    refused(graph._replace(steps=narrow), r"pools \[1, 7, 7, 1280\] in windows of \[3, 3\]")


def test_float_pictures_are_quantised_by_the_reader(int8: Path):
    graph = tflite_graph.load_graph(int8 / PTQ)
    tensors = dict(graph.tensors)
    tensors[0] = tensors[0]._replace(kind="FLOAT32", scale=np.zeros(0), zero_point=np.zeros(0, int))
    found = tflite_file._Translation(graph._replace(tensors=tensors), "m.tflite").graph()
    assert found.input == "109" and found.grids["109"].zero_point == -1
    assert not isinstance(found.operations[0], integer.Rescale)


@FILES
def test_operations_equal_litert(int8: Path, images: Path, name: str):
    graph = graph_of(name)
    codes = graph.quantize_input(benchmark.photographs(images, 224, 2).images)
    found = runtimes.compare_operations(int8 / name, graph, codes)
    assert all(row["equal"] == 1 for row in found.values()), found
    # With ties away from zero everywhere, some are one apart.
    found = runtimes.compare_operations(int8 / name, graph, codes[:1], rounding="double")
    assert all(row["largest"] <= 1 for row in found.values()), found
    assert found["convolution"]["equal"] > 0.999
    for part in set(found) - {"convolution", "dense", "mean (offset)"}:
        assert found[part]["equal"] == 1, (part, found[part])


@FILES
def test_logits_equal_litert(int8: Path, images: Path, name: str):
    graph = graph_of(name)
    codes = graph.quantize_input(benchmark.photographs(images, 224, 4).images)
    ours = benchmark.executor_logits(graph, codes, rounding="builtin")
    assert ours.shape == (4, 1001) and ours.dtype == graph.grids[graph.output].dtype
    runtime = benchmark.LiteRT(int8 / name, int(graph.output))
    theirs = np.stack([runtime.run(picture).ravel() for picture in codes])
    np.testing.assert_array_equal(ours, theirs)
    # The file's own answer is the softmax of these logits.
    real = graph.dequantize_output(theirs[:1])
    answer = benchmark.LiteRT(int8 / name).run(codes[0]).ravel()
    softmax = np.exp(real[0] - real.max())
    np.testing.assert_allclose(answer, 256 * softmax / softmax.sum(), atol=1.1)


@pytest.mark.slow
@FILES
def test_all_photographs_are_classified_as_by_litert(int8: Path, images: Path, name: str):
    found = benchmark.photographs(images, 224)
    for row in benchmark.measure(int8 / name, found, compared=4):
        print(row)
        assert row["images"] == (200 if row["part"] == "network" else 4)
        if row["kernels"] == "builtin" and row["rounding"] == "builtin":
            assert row["equal"] == 1
        elif row["part"] == "network":
            assert abs(row["top1"] - row["litert_top1"]) <= 1
        else:
            assert row["largest"] <= 1
