"""Quantised networks as integers: each operation against the forward pass that is simulated."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from quantize import small, variants

from mobilenet.models.mobilenet_v1 import MobileNetV1, plan_blocks
from mobilenet.models.mobilenet_v2 import BlockSpec, MobileNetV2
from mobilenet.quantize import calibration, integer, layers, lowering, rules
from mobilenet.quantize.rules import ACTIVATIONS, RuleError, kind
from mobilenet.trees import flatten, nest

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
# Whose every part another scheme has too.
MIXTURES = ("w3a8_fixed", "per_tensor", "affine", "symmetric", "lsq")


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with variants.quick_compilation(tmp_path_factory.getbasetemp() / "xla"):
        yield


def trained() -> tuple[MobileNetV2, dict[str, Any]]:
    """The small network in the form that compiles fastest."""
    model, variables = small.trained()
    return model.clone(conv_form="grouped"), variables


def is_quantizer(module: Any, method: str) -> bool:
    return isinstance(module, layers.Quantizer) and method == "__call__"


def forward(model: Any, variables: Any, images: np.ndarray) -> tuple[Any, dict[str, np.ndarray]]:
    """Logits, and what every quantiser of activations hands on.

    That lies on the grid, so its code is beyond doubt. What the quantiser is given is not enough:
    next to a tie float32 rounds the quotient to another code than float64, and one code of an input
    is worth a code and more of an output with smaller steps.
    """
    run = jax.jit(
        lambda v, x: model.apply(
            v, x, False, mutable=["intermediates"], capture_intermediates=is_quantizer
        )
    )
    logits, found = run(variables, images)
    sites = {"/".join(p[:-1]): leaf for p, (leaf,) in flatten(found["intermediates"]).items()}
    return logits, {s: np.asarray(x) for s, x in sites.items() if kind(s) == ACTIVATIONS}


def allowed(graph: integer.Graph, operation: integer.Operation) -> Any:
    """The largest difference of codes.

    Two numbers that are at most n apart round to codes at most n apart, n whole; what keeps the
    sums apart is half a unit of the bias and, far below it, the precision of both multiplications.
    """
    if not isinstance(operation, integer.Convolution | integer.Dense):
        return 1
    unit = graph.grids[operation.inputs[0]].scale * np.asarray(operation.kernel_scale)
    return np.maximum(1, np.ceil(unit / 2 / graph.grids[operation.output].scale))


def compare(
    model: Any, variables: Any, images: np.ndarray, agreement: float = 0.95
) -> dict[str, list[np.ndarray]]:
    """Kind of operation -> differences of codes, each operation given the forward's own codes."""
    graph = lowering.lower(model, variables, small.SHAPE)
    logits, rounded = forward(model, variables, images)
    assert set(graph.grids) == set(rounded)
    tensors = {name: grid.quantize(rounded[name]) for name, grid in graph.grids.items()}
    differences: dict[str, list[np.ndarray]] = {}
    for operation in graph.operations:
        ours = integer.run_op(graph, operation, tensors).astype(int)
        apart = np.abs(ours - tensors[operation.output])
        assert np.all(apart <= allowed(graph, operation)), operation.name
        differences.setdefault(type(operation).__name__, []).append(apart)
    whole = graph.dequantize_output(integer.run(graph, tensors[graph.input]))
    # The whole network: steps that differ by a code travel on, but the answer stays.
    assert (whole.argmax(1) == np.asarray(logits).argmax(1)).mean() >= agreement
    return differences


def check(differences: dict[str, list[np.ndarray]], least: float | None = None) -> None:
    for operation, found in differences.items():
        codes = np.concatenate([x.ravel() for x in found])
        bound = EXACT.get(operation, 0.999)
        assert (codes == 0).mean() >= (bound if least is None else min(bound, least)), operation


@pytest.mark.parametrize(
    "scheme",
    [pytest.param(s, marks=[pytest.mark.slow] if s in MIXTURES else []) for s in SCHEMES],
)
def test_each_operation_is_the_forwards_within_a_code(scheme: str):
    model, variables = small.quantized(*trained(), **SCHEMES[scheme])
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


def squeezed(gate: str = "sigmoid") -> MobileNetV2:
    return small.network(
        plan={"se_ratio": 0.5, "head_features": 0}, se_gate=gate, conv_form="grouped"
    )


@pytest.mark.parametrize("gate", ["sigmoid", pytest.param("hard_sigmoid", marks=pytest.mark.slow)])
def test_squeeze_and_excitation(gate: str):
    float_model = squeezed(gate)
    model, variables = small.quantized(float_model, small.untrained(float_model))
    quant = flatten(variables["quant"])
    hidden = [path for path in quant if path[-2:] == ("hidden", "high")]
    assert hidden and all(quant[path] > 0 for path in hidden)
    found = compare(model, variables, small.digits()[0][-64:], 0.9)
    assert set(found) == {"Convolution", "Dense", "Mean", "Lookup", "Multiply", "Add"}
    check(found)


def test_the_integer_network_is_as_accurate_as_the_float_one():
    float_model, float_variables = trained()
    model, variables = small.quantized(float_model, float_variables)
    images, labels = small.digits()
    graph = lowering.lower(model, variables, small.SHAPE)
    codes = integer.run(graph, graph.quantize_input(images[-360:]))
    floats = np.asarray(jax.jit(float_model.apply)(float_variables, images[-360:]))
    right = (floats.argmax(1) == labels[-360:]).mean()
    assert right > 0.85
    assert (codes.argmax(1) == labels[-360:]).mean() > right - 0.02
    assert (codes.argmax(1) == floats.argmax(1)).mean() > 0.97


def test_behind_a_tensor_of_zeros_half_a_unit_of_the_bias_may_be_missing():
    float_model = squeezed()
    float_variables = small.untrained(float_model)
    params = flatten(float_variables["params"])
    params[("blocks_0_0", "se", "reduce", "bias")] -= 100  # after ReLU nothing is left
    float_variables = {**float_variables, "params": nest(params)}
    model, variables = small.quantized(float_model, float_variables)
    graph = lowering.lower(model, variables, small.SHAPE)
    assert graph.grids["blocks_0_0/se/hidden"].scale == 1
    assert allowed(graph, graph.operation("blocks_0_0/se/scores")).max() > 1
    compare(model, variables, small.digits()[0][-16:], 0.8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {
            "plan": {
                "blocks": (BlockSpec(2, 8, 3, 2),),
                "shortcut": "expansion",
                "head_features": 0,
            },
            "activation": "relu",
            "padding": "SYMMETRIC",
        },
        {
            "plan": {"shortcut_projection": True, "stem_features": 16},
            "bottleneck_activation": "relu6",
        },
    ],
    ids=["expansion_headless", "projection"],
)
def test_other_plans(changes: dict[str, Any]):
    float_model = small.network(**changes, conv_form="grouped")
    assert {b.shortcut for b in float_model.plan.blocks} & {"expansion", "projection"}
    model, variables = small.quantized(float_model, small.untrained(float_model))
    compare(model, variables, small.digits()[0][-32:], 0.9)


def test_dead_channels_and_large_biases_are_their_bias():
    model, variables = trained()
    params = flatten(variables["params"])
    scale = np.array(params[("stem", "bn", "scale")])
    bias = np.array(params[("stem", "bn", "bias")])
    # Nothing left of the first; the weights of the second are nothing next to its bias, which int32
    # does not hold in steps of theirs.
    scale[0], bias[0] = 0, 1
    scale[1], bias[1] = 1e-10, 2
    params[("stem", "bn", "scale")], params[("stem", "bn", "bias")] = scale, bias
    changed = {**variables, "params": nest(params)}
    model, quantised = small.quantized(model, changed, settings={"fold": False})
    graph = lowering.lower(model, quantised, small.SHAPE)
    images = small.digits()[0][-64:]
    tensors = integer.run(graph, graph.quantize_input(images), keep=True)
    stem = graph.grids["stem/output"].dequantize(tensors["stem/output"])
    step = graph.grids["stem/output"].scale
    np.testing.assert_allclose(stem[..., 0], 1, atol=step / 2 * 1.01)
    np.testing.assert_allclose(stem[..., 1], 2, atol=step / 2 * 1.01)
    check(compare(model, quantised, images))


def without_ranges(
    float_model: MobileNetV2, rows: tuple[tuple[str, str], ...] = ()
) -> tuple[MobileNetV2, dict[str, Any]]:
    """A quantised network that saw no image: bits and structure alone are right."""
    found = rules.parse(small.WEIGHTS, small.ACTIVATIONS, rows)
    model: Any = layers.quantize_network(float_model, found)
    quant = calibration.empty(calibration.structure(model, small.SHAPE)["quant"])
    quant = calibration.with_bits(quant, lambda site: found.find(site).bits)
    return model, {**variants.random_variables(float_model, shape=small.SHAPE), "quant": quant}


def test_channels_without_weights_are_their_bias_at_any_precision_of_the_input():
    model, variables = trained()
    params = flatten(variables["params"])
    kernel, bias = (
        np.array(params[("stem", *name)]) for name in (("conv", "kernel"), ("bn", "bias"))
    )
    kernel[..., 3], bias[3] = 0, 2.2
    params[("stem", "conv", "kernel")], params[("stem", "bn", "bias")] = kernel, bias
    stats = flatten(variables["batch_stats"])
    stats[("stem", "bn", "mean")] = np.where(np.arange(8) == 3, 0, stats[("stem", "bn", "mean")])
    changed = {"params": nest(params), "batch_stats": nest(stats)}
    # Half a step of the input is worth almost three of the output.
    model, quantised = small.quantized(model, changed, (("input", "bits=4"),))
    graph = lowering.lower(model, quantised, small.SHAPE)
    tensors = integer.run(graph, graph.quantize_input(small.digits()[0][-16:]), keep=True)
    grid = graph.grids["stem/output"]
    assert graph.grids["input"].scale > 5 * grid.scale
    stem = grid.dequantize(tensors["stem/output"])
    np.testing.assert_allclose(stem[..., 3], 2.2, atol=grid.scale / 2 * 1.01)


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
    model, variables = without_ranges(small.network(**changes), rows)
    with pytest.raises(lowering.LoweringError, match=message):
        lowering.lower(model, variables, small.SHAPE)


def test_what_was_never_quantised_is_refused():
    model, variables = small.trained()
    with pytest.raises(RuleError, match="is not quantised"):
        lowering.lower(model, {**variables, "quant": {}}, small.SHAPE)
    with pytest.raises(lowering.LoweringError, match="only MobileNetV2 can be quantised"):
        lowering.lower(MobileNetV1(plan=plan_blocks()), {}, small.SHAPE)


def test_tables_of_sixteen_bits_are_refused():
    rows = ((".*/se/scores", "bits=12"),)
    model, variables = without_ranges(small.network(plan={"se_ratio": 0.25}), rows)
    with pytest.raises(lowering.LoweringError, match="tables have at most 256"):
        lowering.lower(model, variables, small.SHAPE)
