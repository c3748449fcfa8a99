"""Every published and computed count, from the block table and again from real variables."""

import csv
from pathlib import Path
from typing import Any

import pytest

from mobilenet.models import cost, tracing
from mobilenet.models.mobilenet_v2 import MobileNetV2, plan_blocks

COUNTS = Path(__file__).parent / "reference" / "analytic_costs.csv"
PEAKS = Path(__file__).parents[2] / "experiments" / "reference" / "peak_memory.csv"
CIFAR = {"stem_strides": 1, "stage_strides": (1, 1, 2, 2, 1, 2, 1)}
SE_RULES: dict[str, dict[str, Any]] = {
    "none": {},
    "c_expanded/4": {"se_ratio": 1 / 4},
    "make_divisible(c_expanded/4,8)": {"se_ratio": 1 / 4, "se_divisor": 8},
    "c_in/4": {"se_ratio": 1 / 4, "se_base": "input"},
    "c_expanded/16": {"se_ratio": 1 / 16},
    "c_expanded/24": {"se_ratio": 1 / 24},
}


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def plan_of(row: dict[str, str]):
    settings = dict(SE_RULES[row.get("se_rule", "none")])
    if row.get("variant", "").startswith("CIFAR"):
        settings |= CIFAR
    return plan_blocks(
        width_multiplier=float(row["width"]), expansion_ratio=float(row["t"]), **settings
    )


def image(row: dict[str, str]) -> tuple[int, int, int]:
    return (int(row["resolution"]), int(row["resolution"]), 3)


def from_variables(plan: Any, shape: tuple[int, int, int], num_classes: int) -> cost.Totals:
    """Counts from the shapes of a traced network: no plan, no formula of `cost.layer_costs`."""
    return cost.totals(tracing.layer_costs(MobileNetV2(plan, num_classes=num_classes), shape))


def test_reference_files_are_whole():
    assert len(rows(COUNTS)) == 126
    assert len(rows(PEAKS)) == 254


def test_counts_from_the_table_equal_every_reference_row():
    for row in rows(COUNTS):
        layers = cost.layer_costs(plan_of(row), image(row), int(row["num_classes"]))
        total = cost.totals(layers)
        convs = [layer for layer in layers if layer.bn_channels]
        se = [layer for layer in layers if layer.role == "se"]
        got = {
            "conv_weights": sum(layer.weights for layer in convs),
            "bn_channels": sum(layer.bn_channels for layer in layers),
            "fc_weights": layers[-1].weights,
            "fc_bias": layers[-1].biases,
            "se_params": sum(layer.weights + layer.biases for layer in se),
            "params_weights_only": total.params_weights,
            "params_bn_folded": total.params_folded,
            "params_trainable": total.params,
            "params_with_bn_stats": total.params_with_statistics,
            "macs_conv": sum(layer.macs for layer in convs),
            "macs_fc": layers[-1].macs,
            "macs_se": sum(layer.macs for layer in se),
            "macs_total": total.macs,
        }
        assert got == {name: int(row[name]) for name in got}, row


def key_of(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[k] for k in ("width", "resolution", "t", "num_classes", "se_rule"))


TRACED = {
    ("1.0", "224", "6", "1000", "none"),
    ("0.35", "96", "6", "1000", "none"),
    ("1.4", "224", "3", "1000", "none"),
    ("0.5", "224", "1", "1000", "none"),
    ("1.0", "224", "6", "1000", "c_in/4"),
    ("0.75", "224", "6", "1000", "make_divisible(c_expanded/4,8)"),
    ("0.5", "32", "6", "100", "none"),
}


def test_counts_from_real_variables_equal_the_reference():
    # Tracing a network takes a second or two: one row of each kind here, all in the slow test.
    for row in (row for row in rows(COUNTS) if key_of(row) in TRACED):
        total = from_variables(plan_of(row), image(row), int(row["num_classes"]))
        assert total.params == int(row["params_trainable"]), row
        assert total.params_weights == int(row["params_weights_only"]), row
        assert total.params_folded == int(row["params_bn_folded"]), row
        assert total.params_with_statistics == int(row["params_with_bn_stats"]), row
        assert total.macs == int(row["macs_total"]), row


@pytest.mark.slow
def test_counts_from_real_variables_equal_every_reference_row():
    for row in rows(COUNTS):
        total = from_variables(plan_of(row), image(row), int(row["num_classes"]))
        assert total.params == int(row["params_trainable"]), row
        assert total.macs == int(row["macs_total"]), row


def test_peak_memory_equals_every_reference_row():
    for row in rows(PEAKS):
        splits = int(row["split"]) if row["split"].isdigit() else None
        definition: Any = row["definition"]
        peak = cost.peak_activation(plan_of(row), image(row), 1000, definition, splits=splits)
        assert peak.elements == int(row["peak_elements"]), row
        # Small expansions reach the peak at two layers, of which either may be named.
        if row["definition"].startswith("per_op") and row["t"] == "6":
            # The reference numbers bottlenecks from 0; ours are named by stage and block.
            block, role = row["at"].removeprefix("b").split(".")
            roles = {"dw": "depthwise", "expand": "expand", "project": "project"}
            assert peak.at == f"{plan_of(row).blocks[int(block)].name}/{roles[role]}", row


def test_published_checkpoint_table_to_the_printed_digit():
    # research/slim/nets/mobilenet/README.md prints weights and MACs in millions, MACs floored.
    for width, size, params, macs in ((1.0, 224, 3.47, 300), (0.35, 96, 1.66, 11)):
        total = cost.totals(
            cost.layer_costs(plan_blocks(width_multiplier=width), (size, size, 3), 1000)
        )
        assert round(total.params_weights / 1e6, 2) == params
        assert total.macs // 10**6 == macs


@pytest.mark.parametrize(
    ("settings", "num_classes", "params"),
    [
        # kuangliu/pytorch-cifar
        ({**CIFAR, "expand_always": True, "shortcut_projection": True}, 10, 2_296_922),
        # chenyaofo/pytorch-cifar-models
        (CIFAR, 10, 2_236_682),
        # HobbitLong/RepDistiller: stem stride 2, no rounding, width 0.5
        (
            {
                "width_multiplier": 0.5,
                "divisor": 1,
                "stage_strides": (1, 1, 2, 2, 1, 2, 1),
                "expand_always": True,
            },
            100,
            812_836,
        ),
    ],
)
def test_public_cifar_forms(settings: dict[str, Any], num_classes: int, params: int):
    plan = plan_blocks(**settings)
    assert cost.totals(cost.layer_costs(plan, (32, 32, 3), num_classes)).params == params
    assert from_variables(plan, (32, 32, 3), num_classes).params == params


@pytest.mark.parametrize(
    ("output_stride", "side", "macs"),
    [
        # Weights after the last stride (5_0's depthwise on: 1,198,464) run on 14 x 14 pixels
        # instead of 7 x 7, or on 28 x 28; and with 8 those before it, from 3_0's depthwise on
        # (523,584), on 28 x 28 instead of 14 x 14.
        (None, 224, 279_423_872),
        (16, 224, 279_423_872 + 1_198_464 * (14**2 - 7**2)),
        (8, 224, 279_423_872 + 1_198_464 * (28**2 - 7**2) + 523_584 * (28**2 - 14**2)),
        (16, 513, 2_502_824_384),
        (8, 513, 7_903_166_912),
    ],
)
def test_macs_of_the_backbone_at_an_output_stride(output_stride: int | None, side: int, macs: int):
    plan = plan_blocks(output_stride=output_stride, head_features=0)
    total = cost.totals(cost.layer_costs(plan, (side, side, 3), 0))
    assert (total.macs, total.params) == (macs, 1_811_712)
    if side == 513:
        assert from_variables(plan, (side, side, 3), 0) == total


def test_peak_memory_follows_the_output_stride():
    # At 28 x 28 x 960 the depthwise convolutions of stage 5 overtake the first bottlenecks: input,
    # output and the block's own input.
    peak = cost.peak_activation(plan_blocks(output_stride=8), (224, 224, 3), 1000)
    assert (peak.elements, peak.at) == (28 * 28 * (960 + 960 + 160), "blocks_5_1/depthwise")
    assert cost.peak_activation(plan_blocks(output_stride=16), (224, 224, 3), 1000) == (
        cost.peak_activation(plan_blocks(), (224, 224, 3), 1000)
    )


def test_peak_memory_refuses_shortcuts_between_expansions():
    with pytest.raises(ValueError, match="no published definition"):
        cost.peak_activation(plan_blocks(shortcut="expansion"), (32, 32, 3), 10)


def test_peak_memory_refuses_zero_splits():
    with pytest.raises(ValueError, match="splits is 0"):
        cost.peak_activation(plan_blocks(), (32, 32, 3), 10, "block_split", splits=0)
