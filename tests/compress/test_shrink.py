"""Cutting expanded widths: which channels go, that nothing else changes, and what is left."""

import gzip
from typing import Any

import jax
import numpy as np
import pytest

from mobilenet.compress import shrink, size
from mobilenet.models import cost
from mobilenet.models.mobilenet_v2 import BlockSpec, MobileNetV2, Plan, plan_blocks

BLOCKS = (BlockSpec(1, 8, 1, 1), BlockSpec(4, 8, 2, 1), BlockSpec(3, 16, 1, 2))


def planned(**settings: Any) -> Plan:
    return plan_blocks(blocks=BLOCKS, stem_features=8, stem_strides=1, head_features=16, **settings)


def macs(plan: Plan) -> int:
    return cost.totals(cost.layer_costs(plan, (8, 8, 3), 5)).macs


def test_widths_of_blocks_that_expand():
    assert shrink.widths(planned()) == {"blocks_1_0": 32, "blocks_1_1": 32, "blocks_2_0": 24}
    with pytest.raises(shrink.ShrinkError, match="adds the expanded channels of neighbouring"):
        shrink.widths(planned(shortcut="expansion"))
    flat = plan_blocks(blocks=BLOCKS[:1], stem_features=8)
    with pytest.raises(shrink.ShrinkError, match="No block of the network expands"):
        shrink.widths(flat)


def test_the_lowest_channels_of_all_blocks_go_until_the_budget_is_met():
    plan = planned()
    scores = {
        "blocks_1_0": np.repeat([4.0, 1.0, 3.0, 2.0], 8),
        "blocks_1_1": np.full(32, 9.0),
        "blocks_2_0": np.repeat([0.5, 5.0, 2.5], 8),
    }
    seen, chosen = [], {}
    for cuts in range(4):
        budget = macs(plan) if not seen else seen[-1] - 1
        chosen = shrink.cut(plan, scores, macs, budget)
        seen.append(macs(shrink.resize(plan, chosen)))
        assert seen[-1] <= budget
        assert sum(chosen.values()) == 88 - 8 * cuts
    # In order of scores: 0.5 of the last block, then 1 and 2 of the first.
    assert chosen == {"blocks_1_0": 16, "blocks_1_1": 32, "blocks_2_0": 16}
    kept = shrink.kept_channels(scores["blocks_1_0"], 16)
    np.testing.assert_array_equal(kept, [*range(8), *range(16, 24)])


def test_no_block_is_emptied_and_what_is_reachable_is_said():
    plan = planned()
    scores = {name: np.ones(width) for name, width in shrink.widths(plan).items()}
    least = macs(shrink.resize(plan, dict.fromkeys(scores, 8)))
    assert shrink.cut(plan, scores, macs, least) == dict.fromkeys(scores, 8)
    with pytest.raises(
        shrink.ShrinkError, match=f"still has {least:,}; raise the budget to at least that"
    ):
        shrink.cut(plan, scores, macs, least - 1)


def test_widths_become_multiples_and_ties_go_by_index():
    plan = plan_blocks(blocks=(BlockSpec(2.5, 8, 1, 1),), stem_features=8, head_features=0)
    scores = {"blocks_0_0": np.ones(20)}
    whole = macs(plan)
    assert shrink.cut(plan, scores, macs, whole - 1) == {"blocks_0_0": 16}
    assert shrink.cut(plan, scores, macs, whole - 1, divisor=1) == {"blocks_0_0": 19}
    np.testing.assert_array_equal(shrink.kept_channels(np.ones(5), 3), [0, 1, 2])


def perturb(tree: Any, seed: int) -> Any:
    """Copies, with normalisation that does something."""
    rng = np.random.default_rng(seed)

    def change(leaf: np.ndarray) -> np.ndarray:
        noise = 0.1 * rng.normal(size=leaf.shape) if leaf.ndim == 1 else 0.0
        return np.array(np.abs(leaf + noise) if leaf.ndim == 1 else leaf, np.float32)

    return jax.tree.map(change, tree)


@pytest.mark.parametrize("se_ratio", [None, 0.25])
def test_channels_that_are_zero_are_removed_without_a_trace(se_ratio: float | None):
    plan = planned(se_ratio=se_ratio)
    model = MobileNetV2(plan, 5)
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), images))
    variables = {name: perturb(tree, i) for i, (name, tree) in enumerate(variables.items())}
    params: Any = variables["params"]
    gone = {"blocks_1_0": [0, 5, 6, 7, 9, 20, 30, 31], "blocks_2_0": list(range(3, 19))}
    for block, channels in gone.items():
        for name in ("expand", "depthwise"):
            params[block][name]["conv"]["kernel"][..., channels] = 0
            params[block][name]["bn"]["scale"][channels] = 0
            params[block][name]["bn"]["bias"][channels] = 0
        params[block]["project"]["conv"]["kernel"][:, :, channels] = 0
    scores = {name: shrink.score_l1(params, name) for name in shrink.widths(plan)}
    for block, channels in gone.items():
        np.testing.assert_array_equal(np.flatnonzero(scores[block] == 0), channels)
        scale = shrink.score_bn_scale(params, block)
        np.testing.assert_array_equal(np.flatnonzero(scale == 0), channels)
    widths = {"blocks_1_0": 24, "blocks_2_0": 8}
    keep = {name: shrink.kept_channels(scores[name], width) for name, width in widths.items()}
    smaller = shrink.resize(plan, widths)
    if se_ratio:  # the squeeze stays as wide as it was
        assert smaller.blocks[1].squeeze_features == plan.blocks[1].squeeze_features == 8
    params, stats = shrink.slice_network(params, variables["batch_stats"], keep)
    small = MobileNetV2(smaller, 5)
    again = plan_blocks(
        blocks=BLOCKS, stem_features=8, stem_strides=1, head_features=16, se_ratio=se_ratio,
        expanded_features=[block.expanded_features for block in smaller.blocks],
    )  # fmt: skip
    assert again == smaller  # what the configuration says of it
    before = jax.jit(model.apply)(variables, images)
    after = jax.jit(small.apply)({"params": params, "batch_stats": stats}, images)
    # Sums over fewer terms run in another order.
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    assert cost.totals(cost.layer_costs(smaller, (8, 8, 3), 5)).params == sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )


def test_taylor_is_the_first_order_change_of_the_loss():
    rng = np.random.default_rng(1)
    weight, gradient = rng.normal(size=(2, 1, 1, 4, 3))
    tree = {"b": {"project": {"conv": {"kernel": weight}}}}
    grads = {"b": {"project": {"conv": {"kernel": gradient}}}}
    expected = [(weight[0, 0, c] @ gradient[0, 0, c]) ** 2 for c in range(4)]
    np.testing.assert_allclose(shrink.score_taylor(tree, grads, "b"), expected)


def test_plans_refuse_widths_that_do_not_fit():
    with pytest.raises(ValueError, match="has 2 values for 4 blocks"):
        planned(expanded_features=(8, 16))
    with pytest.raises(ValueError, match="blocks_0_0, which does not expand; it must be 8"):
        planned(expanded_features=(16, 16, 16, 16))
    # A width equal to the input's does not make the expansion disappear.
    assert planned(expanded_features=(8, 8, 8, 8)).blocks[1].expands


def test_sizes_by_hand():
    array = np.zeros(64, np.float32)
    array[:5] = [1, 2, 3, 4, 5]
    found = size.sizes({"kernel": array, "bias": np.ones(3, np.float32)})
    assert found["dense"] == 4 * 67
    # A bit for each of 64 and five values; the dense bias costs more with a mask than without.
    assert found["sparse"] == 8 + 20 + 12
    assert found["gzip"] == len(
        gzip.compress(np.ones(3, np.float32).tobytes() + array.tobytes(), 9)
    )
    assert size.sparse_bytes(np.zeros((), np.float32)) == 1
