"""Costs read off a trace: equal to the block table's, complete, and refused where undefined."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import pytest

from mobilenet.benchmark import plain
from mobilenet.models import cost
from mobilenet.models.layers import ConvBNAct
from mobilenet.models.mobilenet_v1 import MobileNetV1
from mobilenet.models.mobilenet_v1 import plan_blocks as plan_v1
from mobilenet.models.mobilenet_v2 import MobileNetV2, plan_blocks
from mobilenet.models.normalization import BatchNorm
from mobilenet.models.tracing import layer_costs


@pytest.mark.parametrize(
    ("settings", "model", "size"),
    [
        ({"width_multiplier": 0.35}, {}, 224),
        ({"se_ratio": 0.25, "se_base": "input"}, {"remat": True}, 97),
        (
            {
                "stem_strides": 1,
                "stage_strides": (1, 1, 2, 2, 1, 2, 1),
                "expand_always": True,
                "shortcut_projection": True,
                "se_ratio": 0.25,
            },
            {"num_classes": 10, "kernel_size": 5, "dtype": jnp.bfloat16},
            32,
        ),
        ({"expansion_ratio": 1.0, "head_features": 0}, {"num_classes": 0}, 32),
    ],
)
def test_a_trace_equals_the_block_table_row_by_row(
    settings: dict[str, Any], model: dict[str, Any], size: int
):
    plan = plan_blocks(**settings)
    network = MobileNetV2(plan, **model)
    shape = (size, size, 3)
    expected = cost.layer_costs(plan, shape, network.num_classes, network.kernel_size)
    assert layer_costs(network, shape) == expected


def test_constructors_and_forms_do_not_change_costs():
    model = MobileNetV1(plan_v1(width_multiplier=0.25), num_classes=10)
    expected = layer_costs(model, (32, 32, 3))
    assert layer_costs(model.clone(conv_form="grouped"), (32, 32, 3)) == expected
    assert layer_costs(model.clone(conv=plain.conv, norm=plain.norm), (32, 32, 3)) == expected


def test_a_callers_list_is_its_own():
    model = MobileNetV1(plan_v1(width_multiplier=0.25), num_classes=10)
    layer_costs(model, (32, 32, 3)).clear()
    assert len(layer_costs(model, (32, 32, 3))) == 28


class Scaled(nn.Module):
    """A convolution, then a learned factor that is of no layer."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(4, (3, 3), strides=2, name="first")(x)
        return x * self.param("factor", nn.initializers.ones, (4,))


class Twice(nn.Module):
    """One convolution over its own output."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        layer = nn.Conv(3, (3, 3), name="first")
        return layer(layer(x))


class Heads(nn.Module):
    """Layers of every kind: a biased convolution, ConvBNAct, dense over a map and over a vector."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(4, (3, 3), strides=2, name="conv")(x)
        x = ConvBNAct(plain_conv, BatchNorm, features=6, name="mixed")(x, False)
        x = nn.Dense(5, name="map")(x)
        return nn.Dense(2, name="vector")(x.mean((1, 2)))


def plain_conv(**settings: Any) -> Any:
    return plain.conv(kernel_init=nn.initializers.ones, **settings)


def test_every_kind_of_layer_is_counted():
    rows = layer_costs(Heads(), (8, 8, 3))
    assert rows == [
        cost.LayerCost("conv", "conv", (8, 8, 3), (4, 4, 4), 108, 4, 0, 108 * 16),
        cost.LayerCost("mixed", "mixed", (4, 4, 4), (4, 4, 6), 24, 0, 6, 24 * 16),
        cost.LayerCost("map", "map", (4, 4, 6), (4, 4, 5), 30, 5, 0, 30 * 16),
        cost.LayerCost("vector", "vector", (1, 1, 5), (1, 1, 2), 10, 2, 0, 10),
    ]


def test_what_has_no_defined_cost_is_refused():
    with pytest.raises(ValueError, match="Scaled has parameters .* normalisation .*: factor"):
        layer_costs(Scaled(), (8, 8, 3))
    with pytest.raises(ValueError, match="first is called twice"):
        layer_costs(Twice(), (8, 8, 3))
