"""Quantised layers in their network: float at 0 bits, rounded once a site, ranges and gradients."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from quantize import variants
from quantize.variants import (
    SHAPE,
    VARIANTS,
    apply,
    images,
    make_rules,
    network,
    prepared,
    quantized,
    random_variables,
    settled,
)

from mobilenet.models.mobilenet_v2 import BlockSpec, MobileNetV2, plan_blocks
from mobilenet.models.normalization import BatchNorm
from mobilenet.quantize import calibration, layers
from mobilenet.quantize.rules import ESTIMATORS, Rule
from mobilenet.train.steps import AXIS
from mobilenet.trees import flatten, nest


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with variants.quick_compilation(tmp_path_factory.getbasetemp() / "xla"):
        yield


LSQ = {"ranges": "lsq", "symmetric": True}


def flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(dict(tree), sep="/")  # pyright: ignore[reportReturnType]


def at(tree: Any, path: str) -> np.ndarray:
    return np.asarray(flat(tree)[path])


@functools.cache
def calibrated(variant: str = "plain") -> tuple[Any, Any, dict[str, Any]]:
    """The float network, the quantised one, and its variables."""
    net, rules = network(variant), make_rules()
    return net, quantized(net), prepared(quantized(net), rules, random_variables(net))


def one_block() -> MobileNetV2:
    """With a shortcut; for what is compiled several times and does not depend on the plan."""
    plan = plan_blocks(
        blocks=(BlockSpec(2, 8, 1, 1),), stem_features=8, stem_strides=2, head_features=0
    )
    return MobileNetV2(plan, 5, conv_form="grouped")


@functools.partial(jax.jit, static_argnums=0)
def _train(net: Any, variables: Any, x: Any) -> Any:
    return net.apply(variables, x, True, mutable=["batch_stats", "quant"])


def train(net: Any, variables: Any, x: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Logits and the updated collections of one training pass."""
    return jax.device_get(_train(net, variables, x))


# ---- the network


@pytest.mark.parametrize(
    "variant",
    [pytest.param(v, marks=[] if v == "plain" else [pytest.mark.slow]) for v in VARIANTS],
)
def test_without_bits_it_is_the_float_network_and_with_eight_close(variant: str):
    net, quantised, variables = calibrated(variant)
    x = images(16)
    exact = apply(net, random_variables(net), x)
    silent = {**variables, "quant": calibration.without_bits(variables["quant"])}
    # Two programs: sums may be in another order.
    np.testing.assert_allclose(apply(quantised, silent, x), exact, rtol=1e-4, atol=1e-5)
    error = np.sqrt(np.mean((apply(quantised, variables, x) - exact) ** 2) / np.var(exact))
    assert 0 < error < 0.1


def test_sites_of_a_network():
    plan = plan_blocks(
        blocks=(BlockSpec(1, 8, 1, 1), BlockSpec(2, 16, 1, 2)), stem_features=8, stem_strides=1,
        head_features=0, se_ratio=0.25,
    )  # fmt: skip
    net = layers.quantize_network(MobileNetV2(plan, 5), make_rules())
    shapes = calibration.structure(net, SHAPE)
    squeeze = [
        "se/expand/weights", "se/gate", "se/hidden", "se/pooled", "se/product", "se/reduce/weights",
        "se/scores",
    ]  # fmt: skip
    layer = ["conv/weights", "output"]
    assert layers.sites(calibration.empty(shapes["quant"])) == sorted(
        [
            "input", "pooled", "logits", "classifier/weights", "blocks_0_0/sum",
            *(f"stem/{name}" for name in layer),
            *(f"blocks_0_0/{part}/{name}" for part in ("depthwise", "project") for name in layer),
            *(f"blocks_0_0/{name}" for name in squeeze),
            *(f"blocks_1_0/{part}/{name}" for part in ("expand", "depthwise", "project")
              for name in layer),
            *(f"blocks_1_0/{name}" for name in squeeze),
        ]
    )  # fmt: skip


def test_float_checkpoints_fit():
    """What learns nothing adds no parameters, and statistics and kernels keep their names."""
    net, _, variables = calibrated()
    plain = random_variables(net)
    for name in ("params", "batch_stats"):
        assert jax.tree.map(np.shape, variables[name]) == jax.tree.map(np.shape, plain[name])


@pytest.mark.parametrize("per_channel", [True, False])
def test_kernels_take_few_values(per_channel: bool):
    net = network()
    quantised = quantized(net, make_rules(weights={"per_channel": per_channel}))
    empty = calibration.empty(calibration.structure(quantised, SHAPE)["quant"])

    def is_kernel(module: Any, method: str) -> bool:
        return (module.name, method) == ("weights", "__call__")

    @jax.jit
    def look(variables: Any) -> Any:
        _, found = quantised.apply(
            variables, images(1), False, mutable=["intermediates"], capture_intermediates=is_kernel
        )
        return found["intermediates"]

    for bits in (2, 4):
        quant = calibration.with_bits(empty, lambda s, b=bits: b if s.endswith("weights") else 0)
        variables = {**random_variables(net), "quant": quant}
        kernels = {
            path.removesuffix("/weights/__call__"): np.asarray(leaf)
            for path, (leaf,) in flat(look(variables)).items()
        }
        check_kernels(net, variables, kernels, bits, per_channel)


def check_kernels(
    net: Any, variables: Any, kernels: dict[str, np.ndarray], bits: int, per_channel: bool
) -> None:
    factors = calibration.folded_kernels(variables, net.bn_epsilon)
    params = flat(variables["params"])
    assert set(kernels) == {p.removesuffix("/kernel") for p in params if p.endswith("/kernel")}
    for path, kernel in kernels.items():
        for channel in range(kernel.shape[-1]):
            values = np.unique(kernel[..., channel])
            assert len(values) <= 2**bits - 1  # narrow: as many below 0 as above
        folded = factors[f"{path}/weights"]
        # Folded again, the largest weight of a grid is exact: the range is the extremes.
        scale = np.abs(folded).max(tuple(range(folded.ndim - 1)) if per_channel else None)
        raw = np.asarray(params[f"{path}/kernel"])
        factor = folded.reshape(-1, folded.shape[-1])[0] / raw.reshape(-1, raw.shape[-1])[0]
        codes = kernel * factor / scale * (2 ** (bits - 1) - 1)
        np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)
        assert np.abs(codes).max() == pytest.approx(2 ** (bits - 1) - 1, rel=1e-4)


def rounds(jaxpr: Any) -> int:
    """Rounding operations on whole tensors, in all nested programs; scalars are zero points."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "round" and equation.outvars[0].aval.size > 1:
            count += 1
        nested = jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns"))
        count += sum(rounds(value) for value in nested if hasattr(value, "eqns"))
    return count


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"weights": LSQ, "activations": LSQ},
        {"activations": {"ranges": "lsq_plus"}},
        {"activations": {"ranges": "pact", "symmetric": True}},
    ],
    ids=["observe", "lsq", "lsq_plus", "pact"],
)
def test_a_training_step_rounds_every_site_once(changes: dict[str, Any]):
    net = quantized(network("squeeze"), make_rules(**changes))
    shapes: Any = calibration.structure(net, SHAPE)
    variables = {name: nest(leaves) for name, leaves in shapes.items()}
    names = ["batch_stats", "quant"]

    def loss(params: Any, others: Any, x: Any) -> Any:
        logits, updated = net.apply({"params": params, **others}, x, True, mutable=names)
        return jnp.sum(jnp.square(logits)), updated

    others = {name: variables[name] for name in names}
    x = jax.ShapeDtypeStruct((4, *SHAPE), jnp.float32)
    jaxpr = jax.make_jaxpr(jax.grad(loss, has_aux=True))(variables["params"], others, x)
    sites = layers.sites(calibration.empty(shapes["quant"]))
    assert rounds(jaxpr.jaxpr) == len(sites) == 61


# ---- ranges in training


def test_evaluation_never_moves_a_range():
    _, net, variables = calibrated()
    run = jax.jit(lambda v, x: net.apply(v, x, False, mutable=["quant", "batch_stats"])[1])
    updated = run(variables, 100 * images(4))
    for name in ("quant", "batch_stats"):
        jax.tree.map(np.testing.assert_array_equal, dict(updated[name]), dict(variables[name]))


def test_training_observes_until_the_counter_ends():
    _, net, variables = calibrated()
    quant = {**variables["quant"], "input": {**variables["quant"]["input"], "observe": 2.0}}
    state = {**variables, "quant": quant}
    low, high = (float(quant["input"][end]) for end in ("low", "high"))
    for step in range(3):
        x = (step + 2) * images(4, seed=step)
        _, updated = train(net, state, x)
        state = {**state, **updated}
        if step < 2:
            low, high = 0.99 * low + 0.01 * x.min(), 0.99 * high + 0.01 * x.max()
        found = state["quant"]["input"]
        np.testing.assert_allclose((found["low"], found["high"]), (low, high), rtol=1e-6)
        assert found["observe"] == 1 - step
    others = flat(state["quant"])
    before = flat(variables["quant"])
    assert others["stem/output/observe"] == np.inf
    assert others["stem/output/high"] != before["stem/output/high"]
    assert all(others[path] == before[path] for path in before if path.endswith("bits"))


@pytest.mark.parametrize("ranges", ["fixed", "lsq", "pact"])
def test_other_ranges_stay(ranges: str):
    net = quantized(network(), make_rules(activations={"ranges": ranges, "symmetric": True}))
    shapes: Any = calibration.structure(net, SHAPE)
    variables = {
        name: nest({p: np.full(x.shape, 3, x.dtype) for p, x in leaves.items()})
        for name, leaves in shapes.items()
    }
    # Nothing else is asked for, and the compiler drops the network.
    updated = jax.jit(
        lambda v, x: net.apply(v, x, True, mutable=["batch_stats", "quant"])[1]["quant"]
    )(variables, images(4))
    assert not any(path.endswith("observe") for path in flat(updated))
    jax.tree.map(np.testing.assert_array_equal, dict(updated), variables["quant"])


@pytest.mark.parametrize("synchronised", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_devices_see_the_ranges_of_one(synchronised: bool):
    net, _, variables = calibrated()
    x = images(8, seed=3) * np.linspace(0.5, 3, 8)[:, None, None, None].astype(np.float32)
    spread = net.clone(bn_axis_name=AXIS if synchronised else None)
    one = quantized(net)
    two = quantized(spread, axis_name=AXIS)
    _, alone = train(one, variables, x)
    names = ["batch_stats", "quant"]
    mapped = jax.pmap(
        lambda v, x: two.apply(v, x, True, mutable=names)[1], AXIS, in_axes=(None, 0),
        devices=jax.devices()[:2],
    )  # fmt: skip
    together = flat(jax.device_get(mapped(variables, x.reshape(2, 4, *SHAPE)))["quant"])
    for path, leaf in together.items():
        np.testing.assert_array_equal(leaf[0], leaf[1], err_msg=path)
        if synchronised or path.startswith("input"):  # after local statistics all differs
            np.testing.assert_allclose(
                leaf[0], flat(alone["quant"])[path], rtol=1e-4, atol=1e-5, err_msg=path
            )


def test_frozen_modules_keep_their_ranges():
    net, _, variables = calibrated()
    frozen = quantized(net.clone(frozen=("stem", "blocks_0_0")))
    _, updated = train(frozen, variables, 10 * images(4))
    before, after = flat(variables["quant"]), flat(updated["quant"])
    moved = {path.split("/")[0] for path in before if before[path] != after[path]}
    assert moved == {"input", "blocks_1_0", "blocks_1_1", "blocks_1_2", "head", "pooled", "logits"}


# ---- normalisation in training


def test_the_batch_normalises_until_the_counter_ends():
    net, batch, variables = calibrated()
    ending = quantized(net, statistics="batch_then_running")
    running = quantized(net, statistics="running")
    shapes = calibration.structure(ending, SHAPE)["quant"]
    counters = {path: np.float32(1) for path in shapes if path[-1] == "batch_norm"}
    assert len(counters) == 13  # every layer but the classifier
    quant = nest({**flatten(variables["quant"]), **counters})
    x = 2 * images(4, seed=5)
    first = train(ending, {**variables, "quant": quant}, x)
    expected = train(batch, variables, x)
    np.testing.assert_allclose(first[0], expected[0], rtol=1e-4, atol=1e-5)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        first[1]["batch_stats"], expected[1]["batch_stats"],
    )  # fmt: skip

    state = {**variables, **first[1]}
    assert at(state["quant"], "stem/batch_norm") == 0
    second = train(ending, state, x)
    jax.tree.map(np.testing.assert_array_equal, second[1]["batch_stats"], first[1]["batch_stats"])
    plain = {path: leaf for path, leaf in flatten(state["quant"]).items() if path not in counters}
    fixed = train(running, {**state, "quant": nest(plain)}, x)
    np.testing.assert_allclose(second[0], fixed[0], rtol=1e-4, atol=1e-5)
    assert not np.allclose(second[0], first[0], atol=1e-2)


def test_running_statistics_stay_while_ranges_move():
    net, _, variables = calibrated()
    _, updated = train(quantized(net, statistics="running"), variables, 3 * images(4))
    jax.tree.map(
        np.testing.assert_array_equal, updated["batch_stats"], dict(variables["batch_stats"])
    )
    path = "blocks_1_0/project/output/high"
    assert at(updated["quant"], path) != at(variables["quant"], path)


def test_a_traced_choice_of_statistics_has_the_gradients_of_either():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 4, 5)).astype(np.float32)
    variables = {
        "params": {"scale": rng.uniform(0.5, 2, 5), "bias": rng.normal(size=5)},
        "batch_stats": {"mean": rng.normal(size=5), "var": rng.uniform(0.5, 2, 5)},
    }
    variables = jax.tree.map(jnp.float32, variables)
    norm = BatchNorm(activation="relu6")

    @jax.jit
    def gradients(params: Any, x: Any, running: Any) -> Any:
        def loss(params: Any, x: Any) -> Any:
            found = {**variables, "params": params}
            y, updated = norm.apply(found, x, running, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y) * jnp.arange(y.size).reshape(y.shape)), updated

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    for fixed in (True, False):

        @jax.jit
        def plain(params: Any, x: Any, fixed: bool = fixed) -> Any:
            def loss(params: Any, x: Any) -> Any:
                found = {**variables, "params": params}
                y, updated = norm.apply(found, x, fixed, mutable=["batch_stats"])
                return jnp.sum(jnp.sin(y) * jnp.arange(y.size).reshape(y.shape)), updated

            return jax.grad(loss, (0, 1), has_aux=True)(params, x)

        traced = gradients(variables["params"], x, jnp.asarray(fixed))
        expected = plain(variables["params"], x)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3)
        jax.tree.map(close, traced[0], expected[0])
        if fixed:
            jax.tree.map(
                np.testing.assert_array_equal, traced[1]["batch_stats"], variables["batch_stats"]
            )
        else:
            jax.tree.map(close, traced[1], expected[1])


# ---- gradients


def layer(**changes: Any) -> tuple[Any, dict[str, Any], np.ndarray]:
    """One quantised layer that normalises by running statistics, its variables and an input."""
    rules = make_rules(weights={"bits": 3, **changes}, activations={"bits": 0, "ranges": "fixed"})
    quantizer = functools.partial(layers.Quantizer, rules=rules)
    conv = functools.partial(layers.QuantizedConv, quantizer=quantizer)
    norm = functools.partial(BatchNorm, epsilon=1e-3)
    module = layers.QuantizedConvBNAct(
        conv, norm, 4, activation="identity", quantizer=quantizer, statistics="running"
    )
    x = np.random.default_rng(1).normal(size=(2, 3, 3, 6)).astype(np.float32)
    variables: Any = module.init(jax.random.key(0), x, False)
    rng = np.random.default_rng(0)
    variables["params"]["bn"]["scale"] = np.asarray([0.5, -1.5, 2.0, 0.0], np.float32)
    variables["batch_stats"]["bn"]["var"] = rng.uniform(0.5, 2, 4).astype(np.float32)
    variables["batch_stats"]["bn"]["mean"] = rng.normal(size=4).astype(np.float32)
    variables["quant"]["conv"]["weights"]["bits"] = np.float32(3)
    return module, variables, x


def test_gradients_pass_through_the_fold():
    module, variables, x = layer()
    r = 1 / np.sqrt(variables["batch_stats"]["bn"]["var"] + 1e-3)
    factor = np.asarray(variables["params"]["bn"]["scale"]) * r
    kernel = np.asarray(variables["params"]["conv"]["kernel"])[0, 0]
    scale = np.abs(kernel * factor).max(0) / 3
    live = factor != 0
    rounded = np.where(
        live,
        np.round(kernel * factor / np.where(live, scale, 1)) * scale / np.where(live, factor, 1),
        kernel,
    )
    weights = np.cos(np.arange(2 * 3 * 3 * 4)).reshape(2, 3, 3, 4).astype(np.float32)

    def loss(params: Any) -> Any:
        return jnp.sum(weights * module.apply({**variables, "params": params}, x, True))

    value, gradient = jax.jit(jax.value_and_grad(loss))(variables["params"])
    mean = np.asarray(variables["batch_stats"]["bn"]["mean"])
    products = x @ rounded
    expected = (products - mean) * factor
    np.testing.assert_allclose(value, np.sum((weights * expected)[..., live]), rtol=1e-4)
    # Every weight of a follows-its-extremes range is inside: the gradient is the float one's.
    by_kernel = np.einsum("bhwi,bhwo->io", x, weights) * factor
    np.testing.assert_allclose(gradient["conv"]["kernel"][0, 0], by_kernel, rtol=1e-4, atol=1e-5)
    # The factor inside the rounding is a constant: the scale acts after it alone.
    by_scale = np.sum(weights * (products - mean) * r, (0, 1, 2))
    np.testing.assert_allclose(gradient["bn"]["scale"][live], by_scale[live], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradient["bn"]["bias"], weights.sum((0, 1, 2)), rtol=1e-4)


def test_a_channel_that_normalisation_silences_stays_finite():
    module, variables, x = layer()
    y = module.apply(variables, x, False)
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y[..., 3], 0, atol=1e-6)  # scale 0, bias 0


@pytest.mark.parametrize(
    ("changes", "learned"),
    [
        ({"weights": LSQ, "activations": LSQ}, {"step"}),
        ({"activations": {"ranges": "lsq_plus"}}, {"step", "offset"}),
        ({"activations": {"ranges": "pact", "symmetric": True}}, {"clip"}),
    ],
    ids=["lsq", "lsq_plus", "pact"],
)
def test_gradients_reach_what_quantisers_learn(changes: dict[str, Any], learned: set[str]):
    activations = {**changes["activations"], "estimator": "percentile"}
    net, rules = one_block(), make_rules(weights=changes.get("weights"), activations=activations)
    quantised, x = quantized(net, rules), images(16)
    # Ranges so small that something is clipped at both ends everywhere: chosen on these images,
    # for activations that the running statistics and the batch's normalise alike.
    variables = settled(net, random_variables(net), x)
    variables = prepared(quantised, rules, variables, percentile=90.0)

    @jax.jit
    def gradient(params: Any) -> Any:
        def loss(params: Any) -> Any:
            found = {**variables, "params": params}
            logits, _ = quantised.apply(found, x, True, mutable=["batch_stats", "quant"])
            return jnp.sum(jnp.square(logits - 3))

        return jax.grad(loss)(params)

    found = flat(gradient(variables["params"]))
    low = {path: leaf for path, leaf in flat(variables["quant"]).items() if path.endswith("/low")}
    names = set()
    for path, leaf in found.items():
        assert np.isfinite(leaf).all(), path
        site, name = path.rpartition("/")[::2]
        if name in ("step", "offset", "clip"):
            names.add(name)
            if name == "clip" and low[f"{site}/low"] < 0:
                assert leaf == 0  # what is signed keeps its range
            elif name != "offset":  # 0 keeps its code: after ReLU the offset has no effect
                assert np.any(leaf != 0), path
            elif low[f"{site}/low"] < 0:
                assert leaf != 0, path
        if name == "kernel":
            assert np.any(leaf != 0), path
    assert names == learned


def test_learned_ranges_start_where_fixed_ones_are():
    """Before the first step they compute the same, where nothing lies outside of the range."""
    net, x = one_block(), images(16)  # as `prepared` calibrates with: a clip cuts both ends
    logits = {}
    for ranges in ("fixed", "lsq", "pact"):
        rules = make_rules(activations={"ranges": ranges, "symmetric": True})
        quantised = quantized(net, rules)
        logits[ranges] = apply(quantised, prepared(quantised, rules, random_variables(net)), x)
    step = np.abs(logits["fixed"]).max() / 127
    for ranges in ("lsq", "pact"):  # a last bit of the scale may tip a code over
        assert np.mean(np.abs(logits[ranges] - logits["fixed"])) < step


def test_recomputed_blocks_equal_kept_ones():
    net, quantised, variables = calibrated()
    again = quantized(net.clone(remat=True))
    x = images(4, seed=6)
    kept, recomputed = train(quantised, variables, x), train(again, variables, x)
    np.testing.assert_allclose(recomputed[0], kept[0], rtol=1e-4, atol=1e-5)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        recomputed[1]["quant"], kept[1]["quant"],
    )  # fmt: skip


def test_a_fixed_grid_does_not_follow_the_weights():
    rule = Rule(8, True, True, ESTIMATORS[0], "fixed")
    kernel = jnp.asarray([[1.0, -2.0], [0.5, 4.0]])
    follows = layers.weight_grid(kernel, 8, Rule(8, True, True, "min_max", "follow"))
    np.testing.assert_allclose(follows.scale, [1 / 127, 4 / 127])
    fixed = layers.weight_grid(
        kernel, 8, rule, low=jnp.asarray([-3.0, -1.0]), high=jnp.asarray([0.0, 1.0])
    )
    np.testing.assert_allclose(fixed.scale, [3 / 127, 1 / 127])
    learned = layers.weight_grid(
        kernel, 4, Rule(4, True, True, "min_max", "lsq"), step=jnp.asarray([0.1, -0.2])
    )
    np.testing.assert_allclose(learned.scale, [0.1, 0.2])
    np.testing.assert_array_equal((learned.low, learned.high), (-7, 7))
