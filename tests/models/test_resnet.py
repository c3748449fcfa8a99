"""ResNet: published counts, the places of strides and pooling, and the shortcut."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import IMAGES, assert_learns, initial, remat_count

from mobilenet.models import cost
from mobilenet.models.resnet import TABLES, BlockSpec, ResNet, plan_blocks
from mobilenet.models.tracing import layer_costs

SMALL = (BlockSpec(8, 1, 1), BlockSpec(16, 2, 2))


def small_model(bottleneck: bool = False, **settings: Any) -> Any:
    return ResNet(
        plan_blocks(SMALL, bottleneck, stem_features=8),
        **{"num_classes": 5, "conv_form": "grouped", **settings},
    )


@pytest.mark.parametrize(
    ("name", "size", "stem_strides", "num_classes", "params", "macs"),
    [
        # torchvision 0.29: `num_params` of the weights' metadata, and MACs as half of what
        # PyTorch's FlopCounterMode counts.
        ("resnet18", 224, 2, 1000, 11_689_512, 1_814_073_344),
        ("resnet50", 224, 2, 1000, 25_557_032, 4_089_184_256),
        ("resnet18", 97, 2, 1000, 11_689_512, 440_843_456),
        # kuangliu/pytorch-cifar, models/resnet.py, counted the same way.
        ("resnet18", 32, 1, 10, 11_173_962, 555_422_720),
        ("resnet50", 32, 1, 10, 23_520_842, 1_297_829_888),
    ],
)
def test_counts_are_the_published_ones(
    name: str, size: int, stem_strides: int, num_classes: int, params: int, macs: int
):
    plan = plan_blocks(*TABLES[name], stem_strides=stem_strides)
    total = cost.totals(layer_costs(ResNet(plan, num_classes=num_classes), (size, size, 3)))
    assert (total.params, total.macs) == (params, macs)


def test_strides_are_in_the_first_3x3_convolution():
    model = ResNet(plan_blocks(*TABLES["resnet50"], width_multiplier=0.25))
    sizes = {layer.name: layer.out_shape[0] for layer in layer_costs(model, (224, 224, 3))}
    assert [sizes[f"blocks_1_0/conv{i}"] for i in (1, 2, 3)] == [56, 28, 28]
    assert sizes["blocks_1_0/shortcut"] == 28
    # The first block of ResNet-50 projects because it widens, that of ResNet-18 does not.
    assert "blocks_0_0/shortcut" in sizes
    assert not plan_blocks(*TABLES["resnet18"]).blocks[0].projects


@pytest.mark.parametrize(("stem_strides", "kernel", "side"), [(2, 7, 8), (1, 3, 32)])
def test_endpoints_have_the_strides_of_table_one(stem_strides: int, kernel: int, side: int):
    plan = plan_blocks(*TABLES["resnet18"], width_multiplier=0.25, stem_strides=stem_strides)
    model: Any = ResNet(plan, num_classes=7)
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    logits, found = jax.eval_shape(lambda v, x: model.apply(v, x, endpoints=True), variables, image)
    assert logits.shape == (2, 7)
    assert {name: x.shape[1:] for name, x in found.items()} == {
        "stem": (32 // stem_strides, 32 // stem_strides, 16),
        **{f"stage_{i}": (side // 2**i, side // 2**i, 16 * 2**i) for i in range(4)},
        "features": (128,),
    }
    assert variables["params"]["stem"]["conv"]["kernel"].shape == (kernel, kernel, 3, 16)
    assert set(variables["params"]) == set(model.modules)
    assert set(variables["params"]["blocks_1_0"]) == {"conv1", "conv2", "shortcut"}


def test_width_multiplier_scales_every_layer():
    plan = plan_blocks(*TABLES["resnet50"], width_multiplier=0.5)
    assert plan.stem_features == 32
    assert [b.features for b in plan.blocks if b.name.endswith("_0")] == [128, 256, 512, 1024]
    assert plan.blocks[-1].inner_features == 256
    with pytest.raises(ValueError, match="stage_strides has 2 values for 4 stages"):
        plan_blocks(*TABLES["resnet50"], stage_strides=(1, 2))


@pytest.mark.parametrize("bottleneck", [False, True])
def test_identity_shortcut_adds_the_input(bottleneck: bool):
    # With the last BN's scale at zero a block hands its input on: it is a ReLU's, so not negative.
    model = small_model(bottleneck)
    variables = jax.tree.map(lambda leaf: leaf, initial(model))  # a copy, changed below
    last = variables["params"]["blocks_1_1"][f"conv{3 if bottleneck else 2}"]["bn"]
    last["scale"] = jnp.zeros_like(last["scale"])
    captured = model.apply(
        variables, IMAGES, capture_intermediates=lambda m, _: (m.name or "").startswith("blocks_1_")
    )[1]["intermediates"]
    before, after = (captured[f"blocks_1_{i}"]["__call__"][0] for i in (0, 1))
    assert float(before.max()) > 0 and float(before.min()) == 0
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(("padding", "first"), [("SYMMETRIC", 0), ("SAME", 1)])
def test_max_pooling_follows_the_padding_convention(padding: Any, first: int):
    # A block whose two convolutions give nothing is ReLU after pooling: PyTorch's windows begin one
    # pixel before the map, TensorFlow's at its first pixel, and end one after it.
    model = small_model(padding=padding)
    variables = jax.tree.map(lambda leaf: leaf, initial(model))  # a copy, changed below
    bn = variables["params"]["blocks_0_0"]["conv2"]["bn"]
    bn["scale"] = jnp.zeros_like(bn["scale"])
    found = model.apply(variables, IMAGES, endpoints=True)[1]
    stem = np.pad(np.asarray(found["stem"]), ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = range(first, first + 8, 2)
    expected = np.stack(
        [np.stack([stem[:, i : i + 3, j : j + 3].max((1, 2)) for j in rows], 1) for i in rows], 1
    )
    np.testing.assert_array_equal(found["stage_0"], expected)


def test_gradient_descent_moves_every_parameter_and_lowers_the_loss():
    assert_learns(small_model())


@pytest.mark.parametrize("bottleneck", [False, True])
def test_remat_recomputes_every_block(bottleneck: bool):
    assert remat_count(small_model(bottleneck)) == 0
    assert remat_count(small_model(bottleneck, remat=True)) == 3
