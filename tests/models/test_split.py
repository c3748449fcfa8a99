"""A block computed in groups of channels is the block."""

import csv
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mobilenet.models import cost, split
from mobilenet.models.mobilenet_v2 import (
    BlockPlan,
    InvertedResidual,
    MobileNetV2,
    Plan,
    plan_blocks,
)

REFERENCE = Path(__file__).parents[2] / "experiments" / "reference"


def a_block(**settings: Any) -> BlockPlan:
    values: dict[str, Any] = {
        "name": "blocks_1_1", "stage": 1, "in_features": 8, "expanded_features": 44, "features": 8,
        "strides": 1, "expands": True, "shortcut": "identity", "squeeze_features": 0,
    }  # fmt: skip
    return BlockPlan(**{**values, **settings})


def built(plan: BlockPlan, x: jax.Array, **settings: Any) -> tuple[InvertedResidual, Any]:
    """A block with the network's constructors, and variables in which nothing is 0 or 1."""
    conv, norm = MobileNetV2(plan=Plan(8, 1, (plan,), 0), conv_form="grouped").constructors()
    block = InvertedResidual(plan=plan, conv=conv, norm=norm, **settings)
    variables = jax.jit(lambda x: block.init(jax.random.key(0), x, None, False))(x)
    keys = iter(jax.random.split(jax.random.key(1), 99))
    disturbed = jax.tree.map(
        lambda leaf: leaf + jax.random.uniform(next(keys), leaf.shape, minval=0.1, maxval=0.4),
        variables,
    )
    return block, disturbed


def both(block: InvertedResidual, variables: Any, x: jax.Array, parts: int):
    """Outputs of the whole block and of the split one."""

    def run(variables: Any, x: jax.Array) -> Any:
        whole: Any = block.apply(variables, x, None, False)
        return whole[0], split.apply_split(block, variables, x, parts)

    return [np.asarray(y) for y in jax.jit(run)(variables, x)]


@pytest.mark.parametrize(
    ("plan", "parts"),
    [
        (a_block(), 1),
        pytest.param(a_block(), 3, marks=pytest.mark.slow),
        (a_block(expanded_features=11), 11),
        (a_block(strides=2, features=12, shortcut="none"), 2),
        (a_block(features=12, shortcut="projection"), 2),
        (a_block(expanded_features=8, expands=False), 3),
    ],
    ids=["whole", "uneven", "single channels", "stride 2", "projection", "t = 1"],
)
def test_outputs_equal_the_unsplit_block(plan: BlockPlan, parts: int):
    x = jax.random.normal(jax.random.key(2), (2, 7, 7, 8))
    block, variables = built(plan, x)
    expected, got = both(block, variables, x, parts)
    assert expected.std() > 0.1
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_non_linear_bottleneck_acts_once_on_the_sum():
    x = jax.random.normal(jax.random.key(2), (2, 7, 7, 8))
    block, variables = built(a_block(), x, bottleneck_activation="relu6")
    expected, got = both(block, variables, x, 4)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("parts", [1, 2, 4, 5, 96])
def test_macs_and_parameters_of_the_parts_add_up(parts: int):
    def macs(plan: BlockPlan) -> int:
        layers = cost.layer_costs(Plan(plan.in_features, 1, (plan,), 0), (16, 16, 3), 0)
        return sum(layer.macs for layer in layers if layer.role != "stem")

    plan = plan_blocks().blocks[1]
    groups = split.part_plans(plan, parts)
    assert sum(part.expanded_features for part in groups) == plan.expanded_features == 96
    assert sum(macs(part) for part in groups) == macs(plan)


def test_one_group_holds_what_the_reference_says():
    # Input, output, and one group of the expanded tensor before and after the depthwise layer.
    with open(REFERENCE / "peak_memory.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["definition"] == "block_split"]
    rows = [row for row in rows if row["split"].isdigit() and row["t"] == "6"]
    assert len(rows) == 120
    for row in rows:
        size = int(row["resolution"])
        plan = plan_blocks(width_multiplier=float(row["width"]))
        held = [size * size * 3 + (size // 2) ** 2 * plan.stem_features]
        size //= 2
        for block in plan.blocks:
            out = -(-size // block.strides)
            group = split.part_plans(block, min(int(row["split"]), block.expanded_features))[0]
            before = size * size  # of x itself where the block does not expand
            held.append(
                size * size * block.in_features
                + out * out * block.features
                + group.expanded_features * ((before if block.expands else 0) + out * out)
            )
            size = out
        features = plan.blocks[-1].features
        held.append(size * size * (features + plan.head_features))
        assert max(held) == int(row["peak_elements"]), row


def test_blocks_whose_channels_depend_on_each_other_are_refused():
    with pytest.raises(ValueError, match="squeeze-and-excitation, which needs all"):
        split.part_plans(a_block(squeeze_features=2), 2)
    with pytest.raises(ValueError, match="shortcut='expansion', which needs all"):
        split.part_plans(a_block(shortcut="expansion"), 2)


@pytest.mark.parametrize("parts", [0, 45])
def test_numbers_of_groups_that_do_not_exist_are_refused(parts: int):
    with pytest.raises(ValueError, match=f"parts is {parts}; blocks_1_1 can be split into 1 to 44"):
        split.part_plans(a_block(), parts)
