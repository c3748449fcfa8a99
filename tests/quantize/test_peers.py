"""Other people's quantisers for the same schemes; each is skipped where it is not installed."""

# pyright: reportMissingImports=false

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from quantize import small

from mobilenet.export import litert, operations, runtimes, verify
from mobilenet.quantize import lowering, numerics

pytestmark = pytest.mark.slow  # CI installs the peers before the slow tests


def kernels() -> np.ndarray:
    """Depthwise [3, 3, 1, 24] float32, with channels of very different ranges and a dead one."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, 3, 1, 24)) * np.exp(rng.uniform(-3, 3, 24))
    weights[..., 5] = 0
    return weights.astype(np.float32)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_qwix_rounds_to_the_same_numbers(bits: int, per_channel: bool, symmetric: bool):
    qarray = pytest.importorskip("qwix._src.core.qarray")
    weights = jnp.asarray(kernels())
    how: Any = qarray.HowToQuantize(
        qtype=jnp.dtype(f"int{bits}"),
        channelwise_axes=(3,) if per_channel else (),
        calibration_method="absmax" if symmetric else "minmax",
    )
    theirs = qarray.quantize(weights, how)
    axes = (0, 1, 2) if per_channel else None
    low, high = weights.min(axes), weights.max(axes)
    if symmetric:
        # Qwix lets the largest number be half a step above the last code, whose bucket ends there.
        last = 2.0 ** (bits - 1) - 1
        high = jnp.maximum(-low, high) * last / (last + 0.5)
        low = -high
    grid = numerics.make_grid(low, high, bits, symmetric=symmetric)
    scale = theirs.scale.reshape(grid.scale.shape)
    np.testing.assert_allclose(grid.scale, scale, rtol=1e-6)
    # The largest numbers are ties then, which a last bit of the scale decides.
    grid = grid._replace(scale=scale)
    if not symmetric:
        zero_points = theirs.zero_point.astype(np.int32).reshape(grid.zero_point.shape)
        np.testing.assert_array_equal(grid.zero_point, zero_points)
    np.testing.assert_array_equal(numerics.to_codes(weights, grid), theirs.qvalue.astype(np.int32))
    np.testing.assert_allclose(
        numerics.fake_quantize(weights, grid), qarray.dequantize(theirs), rtol=1e-5, atol=1e-7
    )


# It keeps every tensor to see their ranges, which LiteRT takes for debugging.
@pytest.mark.filterwarnings("ignore:.*experimental_preserve_all_tensors")
def test_ai_edge_quantizer_makes_a_file_as_accurate_as_ours(tmp_path: Path):
    pytest.importorskip("ai_edge_quantizer")
    from ai_edge_quantizer import quantizer, recipe

    model, variables = small.trained()
    images, labels = small.digits()
    seen, unseen = slice(0, 256), slice(1000, None)
    portable = model.clone(conv_form="grouped")
    path = tmp_path / "float.tflite"
    program = operations.trace(lambda images: portable.apply(variables, images, False), small.SHAPE)
    litert.write_float(path, program, {})
    graph = lowering.lower(*small.quantized(model, variables), small.SHAPE)
    litert.write_integer(tmp_path / "ours.tflite", graph, {})

    peer = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
    pictures: Any = {None: [{"image": image[None]} for image in images[seen]]}
    made: Any = peer.quantize(peer.calibrate(pictures), enable_progress_report=False)
    theirs = tmp_path / "theirs.tflite"
    theirs.write_bytes(bytes(made.quantized_model))

    def accuracy(file: Path) -> float:
        runtime = runtimes.LiteRT(file)
        given = images[unseen]
        if runtime.reads_codes:
            given = litert.signed(graph).quantize_input(given)
        return float((verify.answers(runtime.run, given).argmax(1) == labels[unseen]).mean())

    found = {file: accuracy(tmp_path / f"{file}.tflite") for file in ("float", "ours", "theirs")}
    assert found["float"] > 0.8, found
    assert abs(found["ours"] - found["float"]) < 0.02, found
    assert abs(found["ours"] - found["theirs"]) < 0.02, found
    sizes = {file: (tmp_path / f"{file}.tflite").stat().st_size for file in ("ours", "theirs")}
    assert sizes["ours"] < 1.1 * sizes["theirs"], sizes
