"""MobileNetV3: published counts, the tables' columns, and the layers that MobileNetV2 lacks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import IMAGES, assert_learns, initial, remat_count

from mobilenet.models import cost
from mobilenet.models.mobilenet_v3 import TABLES, BlockSpec, MobileNetV3, StageSpec, plan_blocks
from mobilenet.models.normalization import activate
from mobilenet.models.tracing import layer_costs

SMALL = (
    StageSpec(1, (BlockSpec(3, 16, 16, True, "relu"),)),
    StageSpec(2, 2 * (BlockSpec(5, 32, 24, True, "hard_swish"),)),
)


def small_model(**settings: Any) -> Any:
    plan = plan_blocks(SMALL, 40)
    return MobileNetV3(plan, **{"num_classes": 5, "conv_form": "grouped", **settings})


@pytest.mark.parametrize(
    ("name", "width", "params", "with_statistics", "macs"),
    [
        # Parameters: tf.keras.applications.MobileNetV3Small and ...Large (Keras 3.15), trainable
        # and all. At width 1 torchvision 0.29 has the same, and the MACs (PyTorch's
        # FlopCounterMode, halved). The paper's Table 3 prints 2.5 M and 56 M, 5.4 M and 219 M.
        ("mobilenet_v3_small", 1.0, 2_542_856, 2_554_968, 56_510_400),
        ("mobilenet_v3_small", 0.75, 2_041_872, 2_051_552, None),
        ("mobilenet_v3_large", 1.0, 5_483_032, 5_507_432, 216_589_760),
        ("mobilenet_v3_large", 0.75, 3_993_528, 4_012_616, None),
    ],
)
def test_counts_are_the_published_ones(
    name: str, width: float, params: int, with_statistics: int, macs: int | None
):
    model = MobileNetV3(plan_blocks(*TABLES[name], width_multiplier=width))
    total = cost.totals(layer_costs(model, (224, 224, 3)))
    assert (total.params, total.params_with_statistics) == (params, with_statistics)
    assert macs is None or total.macs == macs


def test_plans_are_the_tables():
    large, small = (
        plan_blocks(*TABLES[f"mobilenet_v3_{size}"]).blocks for size in ("large", "small")
    )
    assert [b.kernel_size for b in large] == [3, 3, 3, 5, 5, 5, 3, 3, 3, 3, 3, 3, 5, 5, 5]
    assert [b.strides for b in large] == [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1]
    assert [b.activation for b in large] == ["relu"] * 6 + ["hard_swish"] * 9
    assert [bool(b.squeeze_features) for b in large] == (
        [False] * 3 + [True] * 3 + [False] * 4 + [True] * 5
    )
    assert [b.kernel_size for b in small] == [3] * 3 + [5] * 8
    assert [b.strides for b in small] == [2, 2, 1, 2, 1, 1, 1, 1, 2, 1, 1]
    assert [b.expanded_features for b in small] == (
        [16, 72, 88, 96, 240, 240, 120, 144, 288, 576, 576]
    )
    assert [b.squeeze_features for b in small] == [8, 0, 0, 24, 64, 64, 32, 40, 72, 144, 144]


def test_endpoints_and_submodules_have_the_common_names():
    model: Any = MobileNetV3(plan_blocks(*TABLES["mobilenet_v3_large"]), num_classes=7)
    image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    logits, found = jax.eval_shape(lambda v, x: model.apply(v, x, endpoints=True), variables, image)
    assert logits.shape == (2, 7)
    assert {name: x.shape[1:] for name, x in found.items()} == {
        "stem": (112, 112, 16), "stage_0": (112, 112, 16), "stage_1": (56, 56, 24),
        "stage_2": (28, 28, 40), "stage_3": (14, 14, 80), "stage_4": (14, 14, 112),
        "stage_5": (7, 7, 160), "head": (7, 7, 960), "features": (1280,),
    }  # fmt: skip
    assert set(variables["params"]) == set(model.modules)
    assert model.modules[-3:] == ("head", "penultimate", "classifier")
    assert set(variables["params"]["penultimate"]) == {"kernel", "bias"}
    assert set(variables["params"]["blocks_2_0"]) == {"expand", "depthwise", "se", "project"}
    assert "bias" not in variables["params"]["head"]["conv"]


def test_penultimate_layer_is_dense_with_hard_swish():
    model = small_model()
    variables = initial(model)
    found = model.apply(variables, IMAGES, endpoints=True)[1]
    dense = variables["params"]["penultimate"]
    expected = activate(found["head"].mean((1, 2)) @ dense["kernel"] + dense["bias"], "hard_swish")
    np.testing.assert_allclose(found["features"], expected, rtol=1e-5, atol=1e-6)
    features = model.clone(num_classes=0).apply(variables, IMAGES)
    np.testing.assert_array_equal(features, found["features"])


def test_penultimate_layer_is_widened_and_never_thinned():
    tables = TABLES["mobilenet_v3_small"]
    widths = {w: plan_blocks(*tables, width_multiplier=w) for w in (0.5, 1.0, 1.5)}
    assert [plan.penultimate_features for plan in widths.values()] == [1024, 1024, 1536]
    assert [plan.head_features for plan in widths.values()] == [288, 576, 864]
    with pytest.raises(ValueError, match="stage_strides has 2 values for 5 stages"):
        plan_blocks(*tables, stage_strides=(1, 2))


def test_gates_are_hard_sigmoids():
    # At -3 a hard sigmoid is shut; a sigmoid would let 5 % through.
    model = small_model()
    variables = jax.tree.map(lambda leaf: leaf, initial(model))  # a copy, changed below
    gate = variables["params"]["blocks_0_0"]["se"]["expand"]
    gate["kernel"] = jnp.zeros_like(gate["kernel"])
    gate["bias"] = jnp.full_like(gate["bias"], -3.0)
    shut = model.apply(variables, IMAGES, endpoints=True)[1]
    gate["bias"] = jnp.full_like(gate["bias"], -2.9)
    ajar = model.apply(variables, IMAGES, endpoints=True)[1]
    np.testing.assert_array_equal(shut["stage_0"], shut["stem"])  # the shortcut alone
    assert not np.array_equal(ajar["stage_0"], ajar["stem"])


def test_gradient_descent_moves_every_parameter_and_lowers_the_loss():
    assert_learns(small_model())


def test_remat_recomputes_every_block():
    assert remat_count(small_model()) == 0
    assert remat_count(small_model(remat=True)) == 3
