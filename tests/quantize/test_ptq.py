"""Post-training quantisation: what each correction mends, their order, and all of them together."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantize.variants import (
    SHAPE,
    VARIANTS,
    apply,
    images,
    make_rules,
    network,
    quantized,
    random_variables,
)

from mobilenet.quantize import calibration, layers, numerics, ptq
from mobilenet.quantize.calibration import CalibrationError
from mobilenet.quantize.fold import Folded, flatten, fold, is_folded
from mobilenet.quantize.rules import RuleError, resolve

EPSILON = 1e-3
PICTURES = images(32, seed=7)
COARSE = {"bits": 3, "per_channel": False, "ranges": "fixed"}
NO_ACTIVATIONS = {"bits": 0}


@functools.cache
def source(variant: str = "plain", activation: str = "relu6") -> tuple[Any, dict[str, Any]]:
    """A float network whose normalisation knows its pictures: the statistics are theirs."""
    net = network(variant, activation=activation)
    variables = random_variables(net)
    run = jax.jit(
        lambda v, x: net.clone(bn_momentum=0.0).apply(v, x, True, mutable=["batch_stats"])
    )
    return net, {**variables, **jax.device_get(run(variables, PICTURES)[1])}


def prepare(
    variant: str, rules: Any, activation: str = "relu6", batches: Any = None, **settings: Any
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The quantised network, its variables, and what was done."""
    net, variables = source(variant, activation)
    quantised = quantized(net, rules)
    given = batches or (lambda: [PICTURES[:20], PICTURES[20:]])
    found, facts = ptq.prepare(quantised, rules, variables, given, SHAPE, ptq.Settings(**settings))
    return quantised, found, facts


def output_means(net: Any, variables: Any) -> dict[Any, np.ndarray]:
    """Layer -> mean of what it hands its activation, [C], on the pictures."""
    run = jax.jit(lambda v, x: net.apply(v, x, False, mutable=[layers.PRODUCTS])[1])
    found = flatten(run(variables, PICTURES)[layers.PRODUCTS])
    folded, means = Folded(variables, EPSILON), {}
    for path, products in found.items():
        layer = path[:-2] if path[-2] == "conv" else path[:-1]
        mean = np.asarray(products, np.float64).mean(tuple(range(products.ndim - 1)))
        means[layer] = mean * folded.factor(layer) + folded.bias(layer)
    return means


def mean_shift(net: Any, variables: Any, wanted: dict[Any, np.ndarray]) -> float:
    """How far means lie from those of the float network, averaged over all channels."""
    found = output_means(net, variables)
    assert found.keys() == wanted.keys()
    return float(np.mean(np.abs(np.concatenate([found[k] - wanted[k] for k in wanted]))))


@functools.cache
def float_means(variant: str = "plain") -> dict[Any, np.ndarray]:
    net, variables = source(variant)
    quantised = quantized(net)
    quant = calibration.empty(calibration.structure(quantised, SHAPE)["quant"])
    return output_means(quantised, {**variables, "quant": quant})


# ---- corrections of the mean


@pytest.mark.parametrize("variant", ["plain", "squeeze"])
def test_empirical_correction_makes_the_means_match(variant: str):
    rules = make_rules(weights=COARSE)
    wanted = float_means(variant)
    net, plain, _ = prepare(variant, rules, fold=False)
    assert mean_shift(net, plain, wanted) > 0.03
    for fold_ in (True, False):
        net, corrected, facts = prepare(variant, rules, correct="empirical", fold=fold_)
        assert mean_shift(net, corrected, wanted) < 1e-4
        assert is_folded(corrected, EPSILON) == fold_
    assert 0.1 < facts["mean_shift"]["largest_in_deviations"] < 100


def test_correction_leaves_training_as_it_was():
    """The batch's own mean takes off what quantisation shifts: nothing is corrected twice."""
    rules = make_rules(weights=COARSE)
    _, variables = source()
    _, plain, _ = prepare("plain", rules, fold=False)
    for kind in ("empirical", "analytic"):
        net, corrected, _ = prepare("plain", rules, correct=kind, fold=False)
        for path, leaf in flatten(corrected["params"]).items():
            if path[0] != "classifier":
                np.testing.assert_array_equal(leaf, flatten(variables["params"])[path])
        means = flatten(corrected["batch_stats"])
        before = flatten(plain["batch_stats"])
        changed = {path[-1] for path in means if not np.array_equal(means[path], before[path])}
        assert changed == {"mean"}


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "squeeze"])
def test_analytic_correction_helps_where_normalisation_knows(variant: str):
    rules = make_rules(weights=COARSE, activations=NO_ACTIVATIONS)
    wanted = float_means(variant)
    shifts = {}
    for kind in ("none", "analytic"):
        net, variables, _ = prepare(variant, rules, correct=kind)
        shifts[kind] = mean_shift(net, variables, wanted)
    assert shifts["analytic"] < 0.6 * shifts["none"]


@pytest.mark.parametrize("ceiling", [6.0, np.inf])
def test_the_mean_of_a_clipped_normal_variable(ceiling: float):
    rng = np.random.default_rng(0)
    mean, std = np.asarray([-2.0, 0.0, 1.0, 5.5, 9.0]), np.asarray([1.0, 2.0, 0.0, 3.0, 0.5])
    drawn = np.clip(mean + std * rng.normal(size=(400_000, 5)), 0, ceiling)
    found = ptq.clipped_mean(mean, std, ceiling)
    np.testing.assert_allclose(found, drawn.mean(0), atol=0.02)


def test_analytic_correction_needs_what_it_reads():
    net, variables = source()
    rules = make_rules()
    with pytest.raises(CalibrationError, match="these weights come folded; use 'empirical'"):
        ptq.prepare(
            quantized(net), rules, fold(variables, EPSILON), lambda: [PICTURES], SHAPE,
            ptq.Settings(correct="analytic"),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "network_settings", "settings", "message"),
    [
        ("squeeze", {}, {"correct": "analytic"}, "without squeeze-and-excitation; set it to 'emp"),
        ("plain", {"activation": "hard_swish"}, {"correct": "analytic"}, "behind ReLU and ReLU6"),
        ("plain", {"bottleneck_activation": "relu6"}, {"correct": "analytic"}, "linear bottl"),
        ("plain", {}, {"adaround_steps": 5}, "range at .*/weights follows the weights.*'fixed'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(
    variant: str, network_settings: Any, settings: Any, message: str
):
    net, rules = network(variant, **network_settings), make_rules()
    with pytest.raises(RuleError, match=message):
        ptq.prepare(
            quantized(net), rules, random_variables(net), lambda: [PICTURES], SHAPE,
            ptq.Settings(**settings),
        )  # fmt: skip


def test_damaged_weights_are_found_before_anything_runs():
    net, variables = source()
    broken = jax.tree.map(np.copy, variables)
    broken["params"]["head"]["bn"]["scale"][0] = np.nan

    def unread() -> Any:
        raise AssertionError("pictures were read")

    with pytest.raises(CalibrationError, match="at head/conv/weights has no range: it holds NaN"):
        ptq.prepare(quantized(net), make_rules(), broken, unread, SHAPE, ptq.Settings())


# ---- learned rounding


@pytest.mark.parametrize("variant", ["plain", "squeeze"])
def test_learned_rounding_is_better_than_nearest(variant: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ptq, "POSITIONS", 512)
    rules = make_rules(weights={**COARSE, "per_channel": True}, activations=NO_ACTIVATIONS)
    net, variables = source(variant)
    exact = apply(net, variables, PICTURES)
    error = {}
    for steps in (0, 60):
        quantised, found, facts = prepare(variant, rules, adaround_steps=steps)
        error[steps] = np.square(apply(quantised, found, PICTURES) - exact).mean()
    assert error[60] < 0.8 * error[0]
    assert facts["adaround"]["error_ratio"] < 0.8 and facts["adaround"]["error_ratio_worst"] <= 1

    # Every weight lies on its grid, at one of the two codes beside it, and deployed as it is.
    resolved = resolve(rules, layers.sites(found["quant"]))
    before = Folded(variables, EPSILON)
    sites = {before.site(layer): layer for layer in before.layers}
    grids = calibration.weight_grids(found, resolved, EPSILON)
    assert grids.keys() == sites.keys()
    for site, (kernel, grid) in grids.items():
        codes = kernel / np.asarray(grid.scale)
        np.testing.assert_allclose(codes, np.round(codes), atol=1e-3, err_msg=site)
        assert np.all(np.abs(codes - before.kernel(sites[site]) / np.asarray(grid.scale)) <= 1.001)


# ---- together


def test_folding_for_good_changes_nothing_of_the_logits():
    rules = make_rules(weights={"ranges": "fixed"})
    apart, kept, _ = prepare("plain", rules, fold=False)
    together, folded, _ = prepare("plain", rules, fold=True)
    assert is_folded(folded, EPSILON) and not is_folded(kept, EPSILON)
    x = images(8, seed=9)
    a, b = apply(apart, kept, x), apply(together, folded, x)
    # Roundings of the products may tip a code over: one of 255 of the logits' range.
    step = (
        flatten(folded["quant"])[("logits", "high")] - flatten(folded["quant"])[("logits", "low")]
    ) / 255
    assert np.mean(np.abs(a - b)) < step


def test_equalisation_comes_before_ranges_and_training_can_go_on():
    rules = make_rules(weights={"ranges": "fixed", "per_channel": False})
    net, variables = source("plain", "relu")
    quantised, equal, facts = prepare("plain", rules, "relu", fold=False, equalize=True)
    assert facts["channel_spread_after"] < facts["channel_spread_before"]
    before, after = flatten(variables["batch_stats"]), flatten(equal["batch_stats"])
    assert all(np.array_equal(before[path], leaf) for path, leaf in after.items())
    folded = Folded(equal, EPSILON)
    for layer in folded.layers:
        high = flatten(equal["quant"])[(*folded.site(layer).split("/"), "high")]
        assert high == pytest.approx(folded.kernel(layer).max())
    # What is rounded is the float network still.
    silent = {**equal, "quant": calibration.without_bits(equal["quant"])}
    x = images(8, seed=9)
    np.testing.assert_allclose(
        apply(quantised, silent, x), apply(net, variables, x), rtol=1e-3, atol=1e-3
    )


def test_analytic_correction_reads_the_equalised_normalisation():
    rules = make_rules(weights=COARSE, activations=NO_ACTIVATIONS)
    net, variables = source("plain", "relu")
    shifts = {}
    for kind in ("none", "analytic", "empirical"):
        quantised, found, _ = prepare("plain", rules, "relu", equalize=True, correct=kind)
        if kind == "none":
            reference, _, _ = prepare("plain", rules, "relu", equalize=True, fold=False)
            exact = {**found, "quant": calibration.without_bits(found["quant"])}
            wanted = output_means(quantised, exact)
        shifts[kind] = mean_shift(quantised, found, wanted)
    assert shifts["analytic"] < 0.6 * shifts["none"]
    assert shifts["empirical"] < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_together(variant: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ptq, "POSITIONS", 256)
    rules = make_rules(
        ("stem/.*weights", "bits=8"),
        ("logits", "bits=16"),
        weights={"bits": 4, "ranges": "fixed", "estimator": "mse"},
        activations={"estimator": "percentile"},
    )
    net, variables = source(variant, "relu")
    quantised, found, facts = prepare(
        variant, rules, "relu", equalize=True, absorb=True, adaround_steps=10, correct="empirical"
    )
    assert set(facts) == {
        "channel_spread_before", "channel_spread_after", "absorbed_channels", "adaround",
        "mean_shift",
    }  # fmt: skip
    exact, rounded = apply(net, variables, PICTURES), apply(quantised, found, PICTURES)
    assert np.isfinite(rounded).all() and is_folded(found, EPSILON)
    assert np.corrcoef(exact.ravel(), rounded.ravel())[0, 1] > 0.9
    shapes = calibration.structure(quantised, SHAPE)
    for name in ("params", "batch_stats", "quant"):
        leaves = flatten(found[name])
        assert {p: np.shape(leaf) for p, leaf in leaves.items()} == {
            p: leaf.shape for p, leaf in shapes[name].items()
        }
        assert all(np.isfinite(leaf).all() for p, leaf in leaves.items() if p[-1] != "observe")


def test_preparing_twice_gives_the_same_bits():
    rules = make_rules(weights={"ranges": "fixed"})
    options: dict[str, Any] = {"adaround_steps": 3, "correct": "empirical", "seed": 5}
    first, second = (prepare("plain", rules, **options)[1] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_codes_are_those_that_the_network_rounds_to():
    """The grids that are deployed give the network's own products."""
    rules = make_rules(weights={"bits": 4, "ranges": "fixed"}, activations=NO_ACTIVATIONS)
    quantised, found, _ = prepare("plain", rules)
    resolved = resolve(rules, layers.sites(found["quant"]))
    net, _ = source()
    deployed = Folded(found, EPSILON)
    for layer in deployed.layers:
        kernel, grid = calibration.weight_grids(found, resolved, EPSILON)[deployed.site(layer)]
        codes = numerics.to_codes(jnp.asarray(kernel), grid)
        deployed.set_kernel(layer, np.asarray(numerics.from_codes(codes, grid)))
    plain = {name: deployed.variables()[name] for name in ("params", "batch_stats")}
    np.testing.assert_allclose(
        apply(quantised, found, PICTURES), apply(net, plain, PICTURES), rtol=1e-4, atol=1e-4
    )
