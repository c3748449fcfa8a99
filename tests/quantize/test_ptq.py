"""Post-training quantisation: what each correction mends, their order, and all of them together."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantize import variants
from quantize.variants import (
    SHAPE,
    VARIANTS,
    apply,
    images,
    make_rules,
    network,
    quantized,
    random_variables,
    settled,
)

from mobilenet.models.mobilenet_v2 import BlockSpec
from mobilenet.quantize import calibration, layers, numerics, ptq
from mobilenet.quantize.calibration import CalibrationError
from mobilenet.quantize.fold import Folded, fold, is_folded
from mobilenet.quantize.rules import RuleError, resolve
from mobilenet.trees import flatten

EPSILON = 1e-3
PICTURES = images(32, seed=7)
COARSE = {"bits": 3, "per_channel": False, "ranges": "fixed"}
NO_ACTIVATIONS = {"bits": 0}
# Layers of few shapes: the learning of roundings is compiled for each.
BLOCKS = (BlockSpec(2, 8, 1, 1), BlockSpec(2, 8, 2, 2))
STEPS = 60  # of it, in every test, as they are compiled in as well


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with variants.quick_compilation(tmp_path_factory.getbasetemp() / "xla"):
        yield


@functools.cache
def source(variant: str = "plain", activation: str = "relu6") -> tuple[Any, dict[str, Any]]:
    """A float network whose normalisation knows its images: the statistics are theirs."""
    net = network(variant, BLOCKS, activation=activation)
    return net, settled(net, random_variables(net), PICTURES)


@functools.cache
def quantised_source(rules: Any, *key: Any) -> Any:
    """The network of `source(*key)` with quantisers, one object for one structure of rules."""
    return quantized(source(*key)[0], rules)


@functools.cache
def prepare(
    variant: str,
    rules: Any,
    activation: str = "relu6",
    **settings: Any,
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The quantised network, its variables, and what was done."""
    _, variables = source(variant, activation)
    quantised = quantised_source(rules.structure, variant, activation)
    found, facts = ptq.prepare(
        quantised, rules, variables, lambda: np.split(PICTURES, 2), SHAPE, ptq.Settings(**settings)
    )
    return quantised, found, facts


@functools.partial(jax.jit, static_argnums=0)
def product_means(net: Any, variables: Any, x: Any) -> Any:
    recorded = net.apply(variables, x, False, mutable=[layers.PRODUCTS])[1][layers.PRODUCTS]
    return jax.tree.map(lambda y: y.mean(tuple(range(y.ndim - 1))), recorded)


def output_means(net: Any, variables: Any) -> dict[Any, np.ndarray]:
    """Layer -> mean of what it hands its activation, [C], on the images."""
    found = flatten(product_means(net, variables, PICTURES))
    folded, means = Folded(variables, EPSILON), {}
    for path, mean in found.items():
        layer = path[:-2] if path[-2] == "conv" else path[:-1]
        means[layer] = np.asarray(mean, np.float64) * folded.factor(layer) + folded.bias(layer)
    return means


def mean_shift(net: Any, variables: Any, wanted: dict[Any, np.ndarray]) -> float:
    """How far means lie from those of the float network, averaged over all channels."""
    found = output_means(net, variables)
    assert found.keys() == wanted.keys()
    return float(np.mean(np.abs(np.concatenate([found[k] - wanted[k] for k in wanted]))))


@functools.cache
def float_means(variant: str, rules: Any) -> dict[Any, np.ndarray]:
    net, variables = source(variant)
    quantised = quantised_source(rules.structure, variant, "relu6")
    quant = calibration.empty(calibration.structure(quantised, SHAPE)["quant"])
    return output_means(quantised, {**variables, "quant": quant})


# ---- corrections of the mean


@pytest.mark.parametrize("variant", ["plain", pytest.param("squeeze", marks=pytest.mark.slow)])
def test_empirical_correction_makes_the_means_match(variant: str):
    rules = make_rules(weights=COARSE)
    wanted = float_means(variant, rules)
    net, plain, _ = prepare(variant, rules, fold=False)
    assert mean_shift(net, plain, wanted) > 0.03
    net, corrected, facts = prepare(variant, rules, correct="empirical", fold=False)
    assert mean_shift(net, corrected, wanted) < 1e-4
    assert 0.1 < facts["mean_shift"]["largest_in_deviations"] < 100


def test_means_weigh_every_picture_alike():
    values = np.random.default_rng(0).normal(2, 3, (7, 4, 5))  # images, positions, channels

    def look(variables: Any, x: np.ndarray) -> Any:
        return {("layer",): (x.sum((0, 1)), np.square(x).sum((0, 1)), x.size / x.shape[-1])}

    mean, variance = ptq._mean_products(look, {}, lambda: [values[:5], values[5:]])[("layer",)]
    np.testing.assert_allclose(mean, values.mean((0, 1)))
    np.testing.assert_allclose(variance, values.var((0, 1)))


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


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(v, marks=[] if v in ("projection", "expansion") else [pytest.mark.slow])
        for v in VARIANTS
        if v != "squeeze"
    ],
)
def test_analytic_correction_knows_what_each_layers_rounding_does(variant: str):
    """Measured with all other layers in float, whose outputs normalisation describes."""
    rules = make_rules(weights=COARSE, activations=NO_ACTIVATIONS)
    net, plain, _ = prepare(variant, rules, fold=False)
    _, corrected, _ = prepare(variant, rules, fold=False, correct="analytic")
    wanted = float_means(variant, rules)
    before, after = Folded(plain, EPSILON), Folded(corrected, EPSILON)
    # The images are not described, so the stem stays.
    np.testing.assert_array_equal(after.bias(("stem",)), before.bias(("stem",)))
    assert set(wanted) == set(before.layers)
    for layer in set(wanted) - {("stem",)}:
        site = before.site(layer)
        bits = calibration.with_bits(plain["quant"], lambda s, own=site: None if s == own else 0)
        shift = output_means(net, {**plain, "quant": bits})[layer] - wanted[layer]
        left = shift + after.bias(layer) - before.bias(layer)
        # Means of bottlenecks are known, those after an activation as far as its input is normal.
        # At the border windows hold zeros besides, which the channel's mean knows nothing of: a
        # third of the taps of the smallest maps.
        kind = layer[-1] if layer != ("blocks_0_0", "expand") else "behind the stem"
        most = {"expand": 0.05, "head": 0.05, "depthwise": 0.75}.get(kind, 0.25)
        assert np.abs(left).mean() < most * np.abs(shift).mean(), layer
    # Together they change what later layers read, which no formula of the first order sees.
    assert mean_shift(net, corrected, wanted) < 0.8 * mean_shift(net, plain, wanted)


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
    with pytest.raises(CalibrationError, match="these weights are already folded; use 'empirical'"):
        ptq.prepare(
            quantized(net), rules, fold(variables, EPSILON), lambda: [PICTURES], SHAPE,
            ptq.Settings(correct="analytic"),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "network_settings", "settings", "message"),
    [
        ("squeeze", {}, {"correct": "analytic"}, "no squeeze-and-excitation; set it to 'emp"),
        ("plain", {"activation": "hard_swish"}, {"correct": "analytic"}, "needs ReLU or ReLU6"),
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


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["plain", pytest.param("squeeze", marks=pytest.mark.slow)])
def test_learned_rounding_is_better_than_nearest(variant: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ptq, "POSITIONS", 256)
    rules = make_rules(weights={**COARSE, "per_channel": True}, activations=NO_ACTIVATIONS)
    net, variables = source(variant, "relu")
    exact = apply(net, variables, PICTURES)
    error = {}
    for steps in (0, STEPS):
        quantised, found, facts = prepare(variant, rules, "relu", adaround_steps=steps)
        error[steps] = np.square(apply(quantised, found, PICTURES) - exact).mean()
    assert error[STEPS] < 0.5 * error[0]
    # A layer is compared with the float network's, so both of its errors hold what the layers
    # before have lost, whichever way its own weights are rounded: little is left to win.
    assert facts["adaround"]["error_ratio"] < 1 and facts["adaround"]["error_ratio_worst"] <= 1

    # Every weight lies on its grid, at one of the two codes next to it, and deployed as it is.
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
    apart, kept, _ = prepare("plain", rules, "relu", fold=False)
    together, folded, _ = prepare("plain", rules, "relu", fold=True)
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
    quantised, plain, _ = prepare("plain", rules, "relu", equalize=True)
    exact = {**plain, "quant": calibration.without_bits(plain["quant"])}
    wanted = output_means(quantised, exact)
    corrected = prepare("plain", rules, "relu", equalize=True, correct="analytic")[1]
    shifts = {
        kind: mean_shift(quantised, found, wanted)
        for kind, found in (("none", plain), ("analytic", corrected))
    }
    assert shifts["analytic"] < 0.6 * shifts["none"]


@pytest.mark.parametrize(
    "variant",
    [pytest.param(v, marks=[] if v == "plain" else [pytest.mark.slow]) for v in VARIANTS],
)
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
        variant, rules, "relu",
        equalize=True, absorb=True, adaround_steps=STEPS, correct="empirical",
    )  # fmt: skip
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


@pytest.mark.slow
def test_preparing_twice_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ptq, "POSITIONS", 256)
    rules = make_rules(weights={"ranges": "fixed"})
    options: dict[str, Any] = {"adaround_steps": STEPS, "correct": "empirical", "seed": 5}
    first, second = (prepare.__wrapped__("plain", rules, "relu", **options)[1] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_codes_are_those_that_the_network_rounds_to():
    """The grids that are deployed give the network's own products."""
    rules = make_rules(weights={"bits": 4, "ranges": "fixed"}, activations=NO_ACTIVATIONS)
    quantised, found, _ = prepare("plain", rules, "relu")
    resolved = resolve(rules, layers.sites(found["quant"]))
    net, _ = source("plain", "relu")
    deployed = Folded(found, EPSILON)
    grids = calibration.weight_grids(found, resolved, EPSILON)
    for layer in deployed.layers:
        kernel, grid = grids[deployed.site(layer)]
        codes = numerics.to_codes(jnp.asarray(kernel), grid)
        deployed.set_kernel(layer, np.asarray(numerics.from_codes(codes, grid)))
    plain = {name: deployed.variables()[name] for name in ("params", "batch_stats")}
    np.testing.assert_allclose(
        apply(quantised, found, PICTURES), apply(net, plain, PICTURES), rtol=1e-4, atol=1e-4
    )
