"""Quantised networks as integers: each operation against the forward pass that is simulated."""

from typing import Any

import jax
import numpy as np
import pytest
from quantize import small

from mobilenet.models.mobilenet_v1 import MobileNetV1
from mobilenet.quantize import integer, layers, lowering
from mobilenet.quantize.calibration import flatten, nest
from mobilenet.quantize.rules import RuleError

# Share of codes that are the forward's own. A mean that is scaled by a factor near 1 is rounded
# twice in fixed point, as TFLite rounds it; weights of 4 bits have coarse biases.
EXACT = {"Mean": 0.6, "Convolution": 0.99, "Dense": 0.97, "Multiply": 0.99}

SCHEMES: dict[str, dict[str, Any]] = {
    "w8a8": {},
    "w4a8": {"weights": {"bits": 4}},
    "w3a8_fixed": {"weights": {"bits": 3, "ranges": "fixed", "estimator": "mse"}},
    "w8a4": {"activations": {"bits": 4}},
    "w8a12": {"activations": {"bits": 12}},
    "per_tensor": {"weights": {"per_channel": False}},
    "affine": {"weights": {"symmetric": False}, "settings": {"fold": False}},
    "affine_per_tensor": {"weights": {"symmetric": False, "per_channel": False, "ranges": "fixed"}},
    "symmetric": {"activations": {"symmetric": True, "ranges": "fixed"}},
    "lsq": {
        "weights": {"ranges": "lsq"},
        "activations": {"symmetric": True, "ranges": "lsq"},
        "settings": {"fold": False},
    },
    "lsq_plus": {"weights": {"ranges": "lsq"}, "activations": {"ranges": "lsq_plus"}},
    "pact": {"activations": {"symmetric": True, "ranges": "pact"}},
}


def compare(
    model: Any, variables: Any, images: np.ndarray, agreement: float = 0.95
) -> dict[str, list[np.ndarray]]:
    """Kind of operation -> differences of codes, each operation given the forward's own codes."""
    graph = lowering.lower(model, variables, small.SHAPE)
    forward = jax.jit(lambda v, x: model.apply(v, x, False, mutable=[layers.SEEN]))
    logits, found = forward(variables, images)
    seen = {"/".join(path[:-1]): np.asarray(x) for path, x in flatten(found["seen"]).items()}
    assert set(graph.grids) == {site for site in seen if not site.endswith("/weights")}
    tensors = {name: grid.quantize(seen[name]) for name, grid in graph.grids.items()}
    differences: dict[str, list[np.ndarray]] = {}
    for operation in graph.operations:
        ours = integer.run_op(graph, operation, tensors).astype(int)
        apart = np.abs(ours - tensors[operation.output])
        differences.setdefault(type(operation).__name__, []).append(apart)
    whole = graph.dequantize_output(integer.run(graph, tensors[graph.input]))
    # The whole network: steps that differ by a code travel on, but the answer stays.
    assert (whole.argmax(1) == np.asarray(logits).argmax(1)).mean() >= agreement
    return differences


def check(differences: dict[str, list[np.ndarray]], least: float | None = None) -> None:
    for kind, found in differences.items():
        codes = np.concatenate([x.ravel() for x in found])
        assert codes.max() <= 1, kind
        bound = EXACT.get(kind, 0.999)
        assert (codes == 0).mean() >= (bound if least is None else min(bound, least)), kind


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_operation_is_the_forwards_within_a_code(scheme: str):
    model, variables = small.quantized(*small.trained(), **SCHEMES[scheme])
    images, labels = small.digits()
    if scheme in ("lsq", "lsq_plus", "pact"):  # as if training had moved them
        params = flatten(variables["params"])
        for path in params:
            if path[-1] in ("step", "offset", "clip"):
                params[path] = params[path] * np.float32(0.9)
        variables = {**variables, "params": nest(params)}
    coarse = scheme in ("w4a8", "w3a8_fixed", "w8a4")
    found = compare(model, variables, images[-64:], 0.8 if coarse else 0.95)
    # Biases are whole numbers of steps of the weights, which are large at few bits.
    check(found, {"w4a8": 0.9, "w3a8_fixed": 0.85, "w8a4": 0.95}.get(scheme))


@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid"])
def test_squeeze_and_excitation(gate: str):
    model, variables = small.quantized(*small.trained(gate))
    found = compare(model, variables, small.digits()[0][-64:])
    assert set(found) == {"Convolution", "Dense", "Mean", "Lookup", "Multiply", "Add"}
    check(found)


def test_the_integer_network_is_as_accurate_as_the_float_one():
    float_model, float_variables = small.trained()
    model, variables = small.quantized(float_model, float_variables)
    images, labels = small.digits()
    graph = lowering.lower(model, variables, small.SHAPE)
    codes = integer.run(graph, graph.quantize_input(images[-360:]))
    floats = np.asarray(jax.jit(float_model.apply)(float_variables, images[-360:]))
    right = (floats.argmax(1) == labels[-360:]).mean()
    assert right > 0.85
    assert (codes.argmax(1) == labels[-360:]).mean() > right - 0.02
    assert (codes.argmax(1) == floats.argmax(1)).mean() > 0.97


@pytest.mark.parametrize(
    "changes",
    [
        {"plan": {"shortcut": "expansion"}},
        {"plan": {"shortcut_projection": True}, "bottleneck_activation": "relu6"},
        {"plan": {"head_features": 0}, "activation": "relu", "padding": "SYMMETRIC"},
    ],
    ids=["expansion", "projection", "headless"],
)
def test_other_plans(changes: dict[str, Any]):
    float_model = small.network(**changes)
    model, variables = small.quantized(float_model, small.train(float_model, 10))
    graph = lowering.lower(model, variables, small.SHAPE)
    images = small.digits()[0][-32:]
    seen = model.apply(variables, images, False, mutable=[layers.SEEN])[1]["seen"]
    tensors = {
        "/".join(path[:-1]): graph.grids["/".join(path[:-1])].quantize(np.asarray(x))
        for path, x in flatten(seen).items()
        if "/".join(path[:-1]) in graph.grids
    }
    assert set(tensors) == set(graph.grids)
    for operation in graph.operations:
        ours = integer.run_op(graph, operation, tensors).astype(int)
        assert np.abs(ours - tensors[operation.output]).max() <= 1, operation.name


def test_dead_channels_and_large_biases_are_their_bias():
    model, variables = small.trained()
    params = flatten(variables["params"])
    scale = np.array(params[("stem", "bn", "scale")])
    bias = np.array(params[("stem", "bn", "bias")])
    # Nothing left of the first; the weights of the second are nothing beside its bias, which int32
    # does not hold in steps of theirs.
    scale[0], bias[0] = 0, 1
    scale[1], bias[1] = 1e-10, 2
    params[("stem", "bn", "scale")], params[("stem", "bn", "bias")] = scale, bias
    changed = {**variables, "params": nest(params)}
    model, quantised = small.quantized(model, changed, settings={"fold": False})
    graph = lowering.lower(model, quantised, small.SHAPE)
    images = small.digits()[0][-16:]
    tensors = integer.run(graph, graph.quantize_input(images), keep=True)
    stem = graph.grids["stem/output"].dequantize(tensors["stem/output"])
    step = graph.grids["stem/output"].scale
    np.testing.assert_allclose(stem[..., 0], 1, atol=step / 2 * 1.01)
    np.testing.assert_allclose(stem[..., 1], 2, atol=step / 2 * 1.01)
    check(compare(model, quantised, images))


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ((("stem/output", "bits=0"),), {}, "The tensor at stem/output is kept in float"),
        ((("classifier/weights", "bits=0"),), {}, "at classifier/weights is kept in float"),
        ((), {"activation": "hard_swish"}, "before stem/output is hard_swish"),
    ],
)
def test_networks_without_an_integer_form(
    rows: tuple[tuple[str, str], ...], changes: dict[str, Any], message: str
):
    float_model = small.network(**changes)
    variables = jax.device_get(float_model.init(jax.random.key(0), small.digits()[0][:1]))
    model, quantised = small.quantized(float_model, variables, rows)
    with pytest.raises(lowering.LoweringError, match=message):
        lowering.lower(model, quantised, small.SHAPE)


def test_what_was_never_quantised_is_refused():
    model, variables = small.trained()
    with pytest.raises(RuleError, match="is a float one"):
        lowering.lower(model, {**variables, "quant": {}}, small.SHAPE)
    with pytest.raises(lowering.LoweringError, match="knows MobileNetV2 alone"):
        lowering.lower(MobileNetV1(plan=None), {}, small.SHAPE)  # pyright: ignore[reportArgumentType]


def test_tables_of_sixteen_bits_are_refused():
    rows = ((".*/se/scores", "bits=12"),)
    model, variables = small.quantized(*small.trained("sigmoid"), rows)
    with pytest.raises(lowering.LoweringError, match="tables have at most 256"):
        lowering.lower(model, variables, small.SHAPE)
