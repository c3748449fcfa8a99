"""Rewritten float weights compute the same: folding, equalising, absorbing, for every plan."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from quantize.variants import VARIANTS, apply, images, network, quantized, random_variables

from mobilenet.models.mobilenet_v2 import BlockSpec, plan_blocks
from mobilenet.quantize import calibration, equalize, ptq
from mobilenet.quantize.equalize import Pair
from mobilenet.quantize.fold import Folded, fold, is_folded
from mobilenet.trees import flatten

EPSILON = 1e-3


@functools.cache
def relu(variant: str = "plain") -> tuple[Any, dict[str, Any]]:
    """A network in which channels may trade scale, and its variables."""
    net = network(variant, activation="relu")
    return net, random_variables(net)


@functools.cache
def forward(variant: str = "plain") -> Any:
    """Logits of it, compiled once."""
    net, _ = relu(variant)
    return jax.jit(lambda variables, x: net.apply(variables, x, False))


def layer(name: str) -> tuple[str, ...]:
    return tuple(name.split("/"))


def pairs_of(**options: Any) -> list[str]:
    plan = plan_blocks(
        blocks=(BlockSpec(1, 8, 1, 1), BlockSpec(2, 16, 3, 2)),
        **{"stem_features": 8, "head_features": 24, **options},
    )
    return ["/".join(a) + " > " + "/".join(b) for a, b in equalize.find_pairs(plan)]


# ---- which layers


INSIDE = [
    [f"{block}/expand > {block}/depthwise", f"{block}/depthwise > {block}/project"]
    for block in ("blocks_1_0", "blocks_1_1", "blocks_1_2")
]
HEAD = ["head > classifier"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # An identity shortcut reads the stem, and the sum after blocks has two authors; the
        # second stage's first block has none, but its output is read by the next one's shortcut.
        ({}, ["blocks_0_0/depthwise > blocks_0_0/project", *sum(INSIDE, []), *HEAD]),
        (
            {"shortcut": "none"},
            ["stem > blocks_0_0/depthwise", "blocks_0_0/depthwise > blocks_0_0/project",
             "blocks_0_0/project > blocks_1_0/expand", *INSIDE[0],
             "blocks_1_0/project > blocks_1_1/expand", *INSIDE[1],
             "blocks_1_1/project > blocks_1_2/expand", *INSIDE[2],
             "blocks_1_2/project > head", *HEAD],
        ),
        (
            {"shortcut": "none", "head_features": 0, "se_ratio": 0.5},
            ["stem > blocks_0_0/depthwise", "blocks_0_0/project > blocks_1_0/expand", INSIDE[0][0],
             "blocks_1_0/project > blocks_1_1/expand", INSIDE[1][0],
             "blocks_1_1/project > blocks_1_2/expand", INSIDE[2][0],
             "blocks_1_2/project > classifier"],
        ),
        # Expanded tensors of the last two blocks are added: neither is its depthwise layer's alone.
        (
            {"shortcut": "expansion"},
            ["stem > blocks_0_0/depthwise", "blocks_0_0/depthwise > blocks_0_0/project",
             "blocks_0_0/project > blocks_1_0/expand", *INSIDE[0],
             "blocks_1_0/project > blocks_1_1/expand", INSIDE[1][1],
             "blocks_1_1/project > blocks_1_2/expand", INSIDE[2][1],
             "blocks_1_2/project > head", *HEAD],
        ),
        # Where widths change at stride 1 a projection reads the block's input too.
        (
            {"shortcut_projection": True, "stage_strides": (1, 1)},
            ["blocks_0_0/depthwise > blocks_0_0/project", *sum(INSIDE, []), *HEAD],
        ),
    ],
    ids=["identity", "none", "squeeze", "expansion", "projection"],
)  # fmt: skip
def test_pairs_of_a_plan(options: dict[str, Any], expected: list[str]):
    assert pairs_of(**options) == expected


def test_layers_in_order_of_computation():
    plan = plan_blocks(
        blocks=(BlockSpec(1, 8, 1, 1), BlockSpec(2, 16, 1, 1)), stem_features=8, se_ratio=0.5,
        shortcut_projection=True, head_features=0,
    )  # fmt: skip
    assert [("/".join(path), role) for path, role in equalize.layer_order(plan)] == [
        ("stem", "dense"),
        ("blocks_0_0/depthwise", "depthwise"),
        ("blocks_0_0/se/reduce", "linear"),
        ("blocks_0_0/se/expand", "linear"),
        ("blocks_0_0/project", "dense"),
        ("blocks_1_0/expand", "dense"),
        ("blocks_1_0/depthwise", "depthwise"),
        ("blocks_1_0/se/reduce", "linear"),
        ("blocks_1_0/se/expand", "linear"),
        ("blocks_1_0/project", "dense"),
        ("blocks_1_0/shortcut", "dense"),
        ("classifier", "linear"),
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_order_has_every_layer(variant: str):
    net, variables = relu(variant)
    found = [path for path, _ in equalize.layer_order(net.plan)]
    assert sorted(found) == sorted(Folded(variables, EPSILON).layers)


# ---- what stays the same


@pytest.mark.parametrize("variant", VARIANTS)
def test_rewriting_leaves_the_logits(variant: str):
    net, variables = relu(variant)
    x, run = images(8, seed=1), forward(variant)
    expected = run(variables, x)
    # Powers of two of rounding: float32's, over a few layers whose weights change by factors.
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)

    folded = fold(variables, EPSILON)
    assert is_folded(folded, EPSILON) and not is_folded(variables, EPSILON)
    close(run(folded, x), expected)
    assert jax.tree.map(np.shape, folded) == jax.tree.map(np.shape, variables)

    layers, pairs = Folded(variables, EPSILON), equalize.find_pairs(net.plan)
    report = equalize.equalize(layers, pairs)
    assert report["channel_spread_after"] < report["channel_spread_before"]
    close(run(layers.variables(), x), expected)
    layers.fold()
    close(run(layers.variables(), x), expected)
    assert is_folded(layers.variables(), EPSILON)


def test_equalised_channels_have_one_range():
    net, variables = relu("chain")
    layers, pairs = Folded(variables, EPSILON), equalize.find_pairs(net.plan)
    equalize.equalize(layers, pairs, rounds=100)
    for first, second in pairs:
        kernel, reader = (np.abs(layers.kernel(path)) for path in (first, second))
        writes = kernel.max(tuple(range(kernel.ndim - 1)))
        axes = (0, 1, 2) if second[-1] == "depthwise" else (*range(reader.ndim - 2), -1)
        np.testing.assert_allclose(writes, reader.max(axes), rtol=1e-2)


def test_statistics_stay_those_of_the_products():
    """Training goes on from equalised weights: the batch finds the statistics that are stored."""
    net, variables = relu()
    layers = Folded(variables, EPSILON)
    equalize.equalize(layers, equalize.find_pairs(net.plan))

    @jax.jit
    def statistics(variables: Any, x: Any) -> Any:
        return net.clone(bn_momentum=0.0).apply(variables, x, True, mutable=["batch_stats"])[1]

    x = images(16)
    # In training the batch normalises, so statistics depend on no stored ones.
    before, after = statistics(variables, x), statistics(layers.variables(), x)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), after, before)
    assert layers.variables()["batch_stats"] is not variables["batch_stats"]
    jax.tree.map(
        np.testing.assert_array_equal,
        layers.variables()["batch_stats"], variables["batch_stats"],
    )  # fmt: skip


@pytest.mark.parametrize("side", ["unwritten", "unread"])
def test_a_channel_without_weights_on_one_side_widens_no_range_on_the_other(side: str):
    net, variables = relu("chain")
    layers, x = Folded(variables, EPSILON), images(4)
    first, second = layer("blocks_1_0/expand"), layer("blocks_1_0/depthwise")
    dead, other = (first, second) if side == "unwritten" else (second, first)
    kernel, large = layers.kernel(dead), layers.kernel(other)
    kernel[..., 3] = 0
    large[..., 3] *= 1000
    layers.set_kernel(dead, kernel)
    layers.set_kernel(other, large)
    # Where it is read, what it always is counts.
    layers.add_bias(first, np.full_like(layers.bias(first), 0.5))
    before = forward("chain")(layers.variables(), x)
    equalize.equalize(layers, [Pair(first, second)])
    largest = np.abs(layers.kernel(other)).reshape(-1, large.shape[-1]).max(0)
    assert largest[3] == pytest.approx(np.delete(largest, 3).max(), rel=1e-4)
    assert not layers.kernel(dead)[..., 3].any()
    after = forward("chain")(layers.variables(), x)
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3)


def test_a_channel_without_weights_on_both_sides_or_all_of_them_is_left_alone():
    net, variables = relu("chain")
    first, second = layer("blocks_1_0/expand"), layer("blocks_1_0/depthwise")
    for channels in ([3], slice(None)):
        layers = Folded(variables, EPSILON)
        for path in (first, second):
            kernel = layers.kernel(path)
            kernel[..., channels] = 0
            layers.set_kernel(path, kernel)
        biases = layers.bias(first)[channels]
        equalize.equalize(layers, [Pair(first, second)])
        after = layers.variables()
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
        np.testing.assert_array_equal(layers.bias(first)[channels], biases)
        assert apply(net, after, images(2)).shape == (2, 5)


# ---- ReLU6


def largest_inputs(net: Any, variables: Any, x: np.ndarray) -> dict[Any, np.ndarray]:
    """What the network hands its activations, of quantisers that round nothing."""
    quant = calibration.empty(calibration.structure(quantized(net), x.shape[1:])["quant"])
    return ptq.largest_inputs(quantized(net), {**variables, "quant": quant}, lambda: [x])


def test_channels_trade_scale_below_the_ceiling_alone():
    net = network("chain", activation="relu6")
    variables, x = random_variables(net), images(8)
    layers, pairs = Folded(variables, EPSILON), equalize.find_pairs(net.plan)
    for path in layers.layers:  # so that some channels reach 6, and some are far below
        if path[-1] in ("expand", "depthwise"):
            channels = np.linspace(0.1, 20, len(layers.bias(path)))
            layers.scale_outputs(path, channels)
    variables = layers.variables()
    before = apply(net, variables, x)
    reach = largest_inputs(net, variables, x)
    ends = ("stem", "expand", "depthwise", "head")
    assert set(reach) == {path for path in layers.layers if path[-1] in ends}
    clipped = np.concatenate([largest >= 6 for largest in reach.values()])
    assert 0.05 < clipped.mean() < 0.95
    biases = layers.biases
    report = equalize.equalize(layers, pairs, reach=reach)
    assert report["channel_spread_after"] < 0.7 * report["channel_spread_before"]
    after = apply(net, layers.variables(), x)
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3)
    for path, largest in largest_inputs(net, layers.variables(), x).items():
        clips = reach[path] >= 6
        assert np.all(largest[~clips] <= 6 * (1 + 1e-4))
        if path[-1] == "expand":  # its own scale alone moves its bias
            np.testing.assert_allclose(layers.bias(path)[clips], biases[path][clips], rtol=1e-4)

    # Without the limits the same trade changes the network.
    layers = Folded(variables, EPSILON)
    equalize.equalize(layers, pairs)
    assert np.abs(apply(net, layers.variables(), x) - before).max() > 0.01


# ---- absorbed biases


def test_absorbing_keeps_what_stays_above_the_surplus():
    net, variables = relu("chain")
    layers, pairs, x = Folded(variables, EPSILON), equalize.find_pairs(net.plan), images(8, seed=2)
    for path in layers.layers:
        if path[-1] == "depthwise":  # so that many channels are always positive
            layers.add_bias(path, np.full_like(layers.bias(path), 2.0))
    variables, before = layers.variables(), Folded(layers.variables(), EPSILON)

    def ends_in_relu(module: Any, _: str) -> bool:
        return module.name in ("stem", "expand", "depthwise", "head")

    _, found = net.apply(
        variables, x, False, mutable=["intermediates"], capture_intermediates=ends_in_relu
    )
    # The least number after ReLU as mean, without deviation: nothing lies below the surplus.
    least = {
        path[:-1]: np.min(y, axis=(0, 1, 2))
        for path, (y,) in flatten(found["intermediates"]).items()
        if path[-1] == "__call__"
    }
    moments = {path: (least.get(path, -np.ones(1)), np.zeros(1)) for path in layers.layers}
    changed = equalize.absorb_biases(layers, pairs, moments)

    # Depthwise layers after are left out, and so are bottlenecks before.
    sources = [first for first, _ in pairs if first[-1] == "depthwise"]
    assert changed == sum(int((least[path] > 0).sum()) for path in sources) > 20
    for path in layers.layers:
        moved = before.bias(path) - layers.bias(path)
        if path in sources:
            np.testing.assert_allclose(moved, least[path], atol=1e-5)
        elif path[-1] != "project":
            np.testing.assert_array_equal(moved, 0)
    expected = forward("chain")(variables, x)
    np.testing.assert_allclose(forward("chain")(layers.variables(), x), expected, atol=2e-3)


def test_the_surplus_is_three_deviations_below_the_mean():
    net, variables = relu("chain")
    pairs, moments = equalize.find_pairs(net.plan), {}
    layers = Folded(variables, EPSILON)
    for path, bias in layers.biases.items():
        moments[path] = np.full_like(bias, 8.0), np.ones_like(bias)
    equalize.absorb_biases(layers, pairs, moments)
    path = layer("blocks_0_0/depthwise")
    moved = Folded(variables, EPSILON).bias(path) - layers.bias(path)
    np.testing.assert_allclose(moved, 8.0 - 3.0, rtol=1e-5)


# ---- folded layers and edits


def test_edits_of_one_layer():
    _, variables = relu("squeeze")
    layers = Folded(variables, EPSILON)
    params, stats = flatten(variables["params"]), flatten(variables["batch_stats"])
    conv, dense = layer("blocks_1_0/expand"), layer("blocks_1_0/se/reduce")
    assert layers.site(conv) == "blocks_1_0/expand/conv/weights"
    assert layers.site(dense) == "blocks_1_0/se/reduce/weights"
    factor = params[(*conv, "bn", "scale")] / np.sqrt(stats[(*conv, "bn", "var")] + EPSILON)
    np.testing.assert_allclose(layers.factor(conv), factor, rtol=1e-6)
    np.testing.assert_allclose(
        layers.kernel(conv), params[(*conv, "conv", "kernel")] * factor, rtol=1e-6
    )
    bias = params[(*conv, "bn", "bias")] - stats[(*conv, "bn", "mean")] * factor
    np.testing.assert_allclose(layers.bias(conv), bias, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(layers.factor(dense), 1)

    for path in (conv, dense):
        before = layers.kernel(path), layers.bias(path)
        channels = np.arange(len(before[1])) + 1.0
        layers.scale_outputs(path, channels)
        np.testing.assert_allclose(layers.kernel(path), before[0] * channels, rtol=1e-5)
        np.testing.assert_allclose(layers.bias(path), before[1] * channels, rtol=1e-5, atol=1e-6)
        layers.set_kernel(path, before[0])
        np.testing.assert_allclose(layers.kernel(path), before[0], rtol=1e-5)
        before = layers.bias(path)
        layers.add_bias(path, channels)
        np.testing.assert_allclose(layers.bias(path), before + channels, rtol=1e-5)
        layers.move_products(path, channels)
        expected = before + channels - channels * layers.factor(path)
        np.testing.assert_allclose(layers.bias(path), expected, rtol=1e-4, atol=1e-5)
    # The variables that were given are as they were.
    assert flatten(variables["params"]).keys() == params.keys()
    np.testing.assert_array_equal(
        flatten(variables["params"])[(*conv, "bn", "scale")], params[(*conv, "bn", "scale")]
    )


def test_a_silenced_channel_keeps_its_kernel():
    _, variables = relu()
    layers = Folded(variables, EPSILON)
    layers.scale_outputs(("stem",), np.asarray([0.0] + 7 * [1.0]))
    raw = layers.raw(("stem",))
    layers.set_kernel(("stem",), layers.kernel(("stem",)) + 1)
    np.testing.assert_array_equal(layers.raw(("stem",))[..., 0], raw[..., 0])
    np.testing.assert_array_equal(layers.kernel(("stem",))[..., 0], 0)
