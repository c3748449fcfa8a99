"""From images to ranges and first steps: values, and what is dead, broken or missing."""

import logging
from typing import Any

import jax
import numpy as np
import pytest
from quantize.variants import SHAPE, images, make_rules, network, quantized, random_variables

from mobilenet.quantize import calibration, layers, numerics
from mobilenet.quantize.calibration import CalibrationError
from mobilenet.quantize.fold import Folded
from mobilenet.quantize.rules import Rules, kind, resolve
from mobilenet.trees import flatten, nest

EPSILON = 1e-3
NET = network()
FLOAT = random_variables(NET)
COUNTERS = {"observe": 7.0, "batch_norm": 5.0}


def as_quantized(net: Any, variables: Any) -> dict[str, Any]:
    """Float variables next to an empty `quant` collection."""
    shapes = calibration.structure(net, SHAPE)
    params = flatten(variables["params"])
    for path, leaf in shapes["params"].items():
        params.setdefault(path, np.ones(leaf.shape, np.float32))
    quant = calibration.empty(shapes["quant"])
    return {**variables, "params": nest(params), "quant": quant}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Observers of 12 images in two batches of different size."""
    net = quantized(NET)
    return calibration.observe(net, as_quantized(net, FLOAT), [images(8), images(4, seed=1)])


def start(found: Any, rules: Rules, variables: Any = FLOAT, **options: Any) -> dict[str, Any]:
    """First variables, with paths as names."""
    net = quantized(NET, rules, **options)
    shapes = calibration.structure(net, SHAPE)
    resolved = resolve(rules, layers.sites(calibration.empty(shapes["quant"])))
    made = calibration.start(shapes, variables, found, resolved, epsilon=EPSILON, counters=COUNTERS)
    return {
        name: {"/".join(path): leaf for path, leaf in flatten(tree).items()}
        for name, tree in made.items()
    }


def test_every_tensor_is_observed(found: dict[str, Any]):
    shapes = calibration.structure(quantized(NET), SHAPE)
    sites = layers.sites(calibration.empty(shapes["quant"]))
    assert set(found) == {site for site in sites if kind(site) == "activations"}
    pictures = np.concatenate([images(8), images(4, seed=1)])
    assert (found["input"].low, found["input"].high) == (pictures.min(), pictures.max())
    assert found["input"].count == pictures.size

    run = jax.jit(lambda v, x: NET.apply(v, x, False, endpoints=True))
    logits, endpoints = jax.device_get(run(FLOAT, pictures))
    for site, tensor in (("logits", logits), ("stem/output", endpoints["stem"]),
                         ("blocks_1_2/sum", endpoints["stage_1"]),
                         ("head/output", endpoints["head"])):  # fmt: skip
        assert found[site].count == tensor.size
        np.testing.assert_allclose(
            (found[site].low, found[site].high), (tensor.min(), tensor.max()), rtol=1e-4, atol=1e-5
        )


def test_bits_do_not_count_while_observing(found: dict[str, Any]):
    net = quantized(NET)
    variables = as_quantized(net, FLOAT)
    coarse = calibration.with_bits(variables["quant"], lambda site: 2)
    again = calibration.observe(net, {**variables, "quant": coarse}, [images(8), images(4, seed=1)])
    assert (again["logits"].low, again["logits"].high) == (
        found["logits"].low, found["logits"].high,
    )  # fmt: skip


def test_first_ranges(found: dict[str, Any]):
    rules = make_rules(
        ("head/.*weights", "bits=4, per_channel=False"),
        ("head/output", "bits=0"),
        ("logits", "bits=16, estimator=percentile"),
        weights={"ranges": "fixed"},
    )
    made = start(found, rules, statistics="batch_then_running")
    quant, folded = made["quant"], Folded(FLOAT, EPSILON)
    for layer in folded.layers:
        kernel, site = folded.kernel(layer), folded.site(layer)
        axes = None if layer == ("head",) else tuple(range(kernel.ndim - 1))
        np.testing.assert_array_equal(quant[f"{site}/low"], kernel.min(axes))
        np.testing.assert_array_equal(quant[f"{site}/high"], kernel.max(axes))
        assert quant[f"{site}/bits"] == (4 if layer == ("head",) else 8)
    for site, observer in found.items():
        expected = observer.range("min_max", 8, symmetric=False)
        if site == "logits":
            expected = observer.range("percentile", 16, symmetric=False)
        assert (quant[f"{site}/low"], quant[f"{site}/high"]) == tuple(map(np.float32, expected))
        assert quant[f"{site}/observe"] == 7
        assert quant[f"{site}/bits"] == {"head/output": 0, "logits": 16}.get(site, 8)
    assert quant["stem/batch_norm"] == quant["blocks_1_0/project/batch_norm"] == 5
    assert {leaf.dtype for leaf in quant.values()} == {np.dtype(np.float32)}
    for name in ("params", "batch_stats"):
        plain = {"/".join(path): leaf for path, leaf in flatten(FLOAT[name]).items()}
        assert made[name].keys() == plain.keys()
        assert all(np.array_equal(made[name][path], leaf) for path, leaf in plain.items())


def test_first_steps_are_the_scales_of_the_ranges(found: dict[str, Any]):
    symmetric = {"symmetric": True}
    params = start(found, make_rules(
        weights={"ranges": "lsq", "bits": 4}, activations={"ranges": "lsq", **symmetric}
    ))["params"]  # fmt: skip
    kernel = Folded(FLOAT, EPSILON).kernel(("stem",))
    np.testing.assert_allclose(
        params["stem/conv/weights/step"], np.abs(kernel).max((0, 1, 2)) / 7, rtol=1e-6
    )
    # After ReLU6 codes are unsigned, of a bottleneck signed.
    assert params["stem/output/step"] == pytest.approx(found["stem/output"].high / 255)
    sums = found["blocks_1_0/project/output"]
    step = max(-sums.low, sums.high) / 127
    assert params["blocks_1_0/project/output/step"] == pytest.approx(step)

    params = start(found, make_rules(activations={"ranges": "lsq_plus"}))["params"]
    assert params["blocks_1_0/project/output/offset"] == np.float32(sums.low)
    step = (sums.high - sums.low) / 255
    assert params["blocks_1_0/project/output/step"] == pytest.approx(step)
    assert params["stem/output/offset"] == 0
    params = start(found, make_rules(activations={"ranges": "pact", **symmetric}))["params"]
    assert params["stem/output/clip"] == np.float32(found["stem/output"].high)


def test_sites_without_bits_get_ranges_too(found: dict[str, Any]):
    """Bits may be raised later: the ranges are those of 8."""
    none = start(found, make_rules(weights={"bits": 0, "ranges": "fixed"}, activations={"bits": 0}))
    eight = start(found, make_rules(weights={"ranges": "fixed"}))
    for path, leaf in none["quant"].items():
        if path.endswith("/bits"):
            assert leaf == 0
        else:
            np.testing.assert_array_equal(leaf, eight["quant"][path])


def test_grids_of_weights(found: dict[str, Any]):
    for changes in ({}, {"ranges": "fixed"}, {"ranges": "lsq"}, {"symmetric": False}):
        rules = make_rules(("head/.*", "bits=0"), weights=changes)
        net = quantized(NET, rules)
        shapes = calibration.structure(net, SHAPE)
        resolved = resolve(rules, layers.sites(calibration.empty(shapes["quant"])))
        made = calibration.start(shapes, FLOAT, found, resolved, epsilon=EPSILON, counters=COUNTERS)
        grids = calibration.weight_grids(made, resolved, EPSILON)
        folded = Folded(FLOAT, EPSILON)
        expected = {folded.site(layer) for layer in folded.layers} - {"head/conv/weights"}
        assert set(grids) == expected
        for site, (kernel, grid) in grids.items():
            codes = numerics.to_codes(kernel, grid)
            error = np.abs(np.asarray(numerics.from_codes(codes, grid)) - kernel)
            assert np.all(error <= np.asarray(grid.scale) * 0.51), site


# ---- what is dead, broken, or missing


def changed(path: str, value: float) -> dict[str, Any]:
    """The float variables with the first channel of one leaf overwritten."""
    params = flatten(FLOAT["params"])
    leaf = params[tuple(path.split("/"))].copy()
    leaf[..., 0] = value
    params[tuple(path.split("/"))] = leaf
    return {**FLOAT, "params": nest(params)}


def test_dead_channels_and_constant_tensors_are_told(
    found: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    dead = changed("blocks_1_0/expand/conv/kernel", 0.0)
    constant = {**found, "pooled": calibration.observers.Observer()}
    constant["pooled"].update(np.full(5, 2.5, np.float32))
    with caplog.at_level(logging.WARNING, "mobilenet"):
        made = start(constant, make_rules(weights={"ranges": "lsq"}), dead)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "blocks_1_0/expand/conv/weights: 1 of 16 ranges only have zeros.",
        "pooled: every number is 2.5 on the calibration images.",
    ]
    assert made["params"]["blocks_1_0/expand/conv/weights/step"][0] == 1.0  # zero is exact
    caplog.clear()
    with caplog.at_level(logging.WARNING, "mobilenet"):
        start(constant, make_rules((".*", "bits=0")), dead)  # kept in float: nothing to tell
    assert not caplog.records


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_name_their_site(found: dict[str, Any], value: float):
    broken = changed("blocks_1_1/project/conv/kernel", value)
    with pytest.raises(CalibrationError, match="at blocks_1_1/project/conv/weights has no range"):
        start(found, make_rules(), broken)


def test_activations_that_are_no_numbers_name_their_site():
    net = quantized(NET)
    with pytest.raises(CalibrationError, match="The tensor at .* cannot be calibrated: it holds N"):
        calibration.observe(net, as_quantized(net, FLOAT), [np.nan * images(2)])


@pytest.mark.parametrize("batches", [[], [images(0)]])
def test_without_pictures_there_are_no_ranges(batches: Any):
    net = quantized(NET)
    with pytest.raises(CalibrationError, match="There are no images for calibration; set "):
        calibration.observe(net, as_quantized(net, FLOAT), batches)


# ---- bits


def test_bits_are_changed_by_site():
    quant = calibration.empty(calibration.structure(quantized(NET), SHAPE)["quant"])
    some = calibration.with_bits(quant, lambda site: 4 if site.startswith("head/") else None)
    more = calibration.with_bits(some, lambda site: {"logits": 16, "head/output": 0}.get(site))
    bits = {"/".join(p[:-1]): leaf for p, leaf in flatten(more).items() if p[-1] == "bits"}
    assert {site: int(value) for site, value in bits.items() if value} == {
        "head/conv/weights": 4, "logits": 16,
    }  # fmt: skip
    others = [leaf for path, leaf in flatten(more).items() if path[-1] != "bits"]
    assert all(np.all(leaf == 0) for leaf in others)
    silent = flatten(calibration.without_bits(more))
    assert not any(np.any(leaf) for path, leaf in silent.items() if path[-1] == "bits")
