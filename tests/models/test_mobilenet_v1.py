"""MobileNetV1: published counts, and what every `Network` does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import IMAGES, assert_learns, initial, remat_count

from mobilenet.models import cost
from mobilenet.models.mobilenet_v1 import PAPER_BLOCKS, BlockSpec, MobileNetV1, plan_blocks
from mobilenet.models.tracing import layer_costs

# Two stages: small enough to compile in a second or two.
SMALL = (BlockSpec(8, 1, 1), BlockSpec(16, 2, 2))


def small_model(**settings: Any) -> Any:
    plan = plan_blocks(blocks=SMALL, stem_features=8)
    return MobileNetV1(plan, **{"num_classes": 5, "conv_form": "grouped", **settings})


# Table 1, printed row by row: (depthwise stride, 1x1 outputs), before which a 3x3 stem of stride 2.
TABLE_1 = (
    *((1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512)),
    *5 * ((1, 512),),
    *((2, 1024), (1, 1024)),
)


def test_plan_is_table_one():
    plan = plan_blocks()
    assert tuple((block.strides, block.features) for block in plan.blocks) == TABLE_1
    assert (plan.stem_features, plan.stem_strides) == (32, 2)
    assert [block.in_features for block in plan.blocks] == [32, *(f for _, f in TABLE_1[:-1])]


@pytest.mark.parametrize(
    ("width", "params", "with_statistics", "millions"),
    [
        # Exact: tf.keras.applications.MobileNet (Keras 3.15), trainable and all weights.
        # In millions: MACs and parameters in Table 6 of the paper.
        (1.0, 4_231_976, 4_253_864, (569, 4.2)),
        (0.75, 2_585_560, 2_601_976, (325, 2.6)),
        (0.5, 1_331_592, 1_342_536, (149, 1.3)),
        (0.25, 470_072, 475_544, (41, 0.5)),
    ],
)
def test_counts_are_the_published_ones(
    width: float, params: int, with_statistics: int, millions: tuple[int, float]
):
    model = MobileNetV1(plan_blocks(width_multiplier=width))
    total = cost.totals(layer_costs(model, (224, 224, 3)))
    assert (total.params, total.params_with_statistics) == (params, with_statistics)
    assert (round(total.macs / 1e6), round(total.params / 1e6, 1)) == millions


@pytest.mark.parametrize(("size", "millions"), [(224, 569), (192, 418), (160, 291), (128, 186)])
def test_macs_are_those_of_the_papers_formula(size: int, millions: int):
    # Equation 5 of the paper, row by row of Table 1, with the stem and the classifier.
    side, channels = size // 2, 32
    macs = 9 * 3 * channels * side**2
    for stride, features in TABLE_1:
        side //= stride
        macs += (9 * channels + channels * features) * side**2
        channels = features
    macs += channels * 1000
    total = cost.totals(layer_costs(MobileNetV1(plan_blocks()), (size, size, 3)))
    assert total.macs == macs
    assert round(macs / 1e6) == millions  # research/slim/nets/mobilenet_v1.md


def test_endpoints_and_submodules_have_the_common_names():
    model: Any = MobileNetV1(plan_blocks(width_multiplier=0.25), num_classes=7)
    image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    logits, found = jax.eval_shape(lambda v, x: model.apply(v, x, endpoints=True), variables, image)
    assert logits.shape == (2, 7) and logits.dtype == jnp.float32
    assert {name: x.shape[1:] for name, x in found.items()} == {
        "stem": (112, 112, 8), "stage_0": (112, 112, 16), "stage_1": (56, 56, 32),
        "stage_2": (28, 28, 64), "stage_3": (14, 14, 128), "stage_4": (7, 7, 256),
        "features": (256,),
    }  # fmt: skip
    assert set(variables["params"]) == set(model.modules)
    assert model.modules[:3] == ("stem", "blocks_0_0", "blocks_1_0")
    assert model.modules[-2:] == ("blocks_4_1", "classifier")
    block = variables["params"]["blocks_0_0"]
    assert set(block) == {"depthwise", "pointwise"}
    assert block["depthwise"]["conv"]["kernel"].shape == (3, 3, 1, 8)
    assert block["pointwise"]["conv"]["kernel"].shape == (1, 1, 8, 16)


def test_stage_strides_replace_the_tables():
    plan = plan_blocks(stem_strides=1, stage_strides=(1, 1, 2, 2, 2))
    assert [b.strides for b in plan.blocks if b.name.endswith("_0")] == [1, 1, 2, 2, 2]
    assert all(b.strides == 1 for b in plan.blocks if not b.name.endswith("_0"))
    with pytest.raises(ValueError, match="stage_strides has 2 values for 5 stages"):
        plan_blocks(stage_strides=(1, 2))


def test_width_multiplier_rounds_to_the_divisor():
    assert plan_blocks(width_multiplier=0.3).blocks[0].features == 24  # 19.2, not below 90 %
    assert plan_blocks(width_multiplier=0.3, divisor=1).blocks[0].features == 19
    assert len(plan_blocks().blocks) == sum(spec.repeats for spec in PAPER_BLOCKS) == 13


def test_zero_classes_is_the_feature_extractor():
    model = small_model()
    variables = initial(model)
    found = model.apply(variables, IMAGES, endpoints=True)[1]
    extractor = model.clone(num_classes=0)
    assert extractor.modules == model.modules[:-1]
    features = extractor.apply(variables, IMAGES)
    np.testing.assert_array_equal(features, found["features"])
    np.testing.assert_allclose(features, found["stage_1"].mean((1, 2)), rtol=1e-5)


def test_frozen_modules_run_as_in_evaluation():
    variables = initial(small_model())
    frozen = ("stem", "blocks_0_0")
    model = small_model(frozen=frozen)
    (_, found), updated = model.apply(
        variables, IMAGES, True, endpoints=True, mutable=["batch_stats"]
    )
    _, evaluated = model.apply(variables, IMAGES, endpoints=True)
    np.testing.assert_allclose(found["stage_0"], evaluated["stage_0"], rtol=1e-6)
    for name, before in variables["batch_stats"].items():
        pairs = zip(
            jax.tree.leaves(before), jax.tree.leaves(updated["batch_stats"][name]), strict=True
        )
        assert all(np.array_equal(a, b) for a, b in pairs) == (name in frozen)


def test_gradient_descent_moves_every_parameter_and_lowers_the_loss():
    assert_learns(small_model())


def test_remat_recomputes_every_block():
    assert remat_count(small_model()) == 0
    assert remat_count(small_model(remat=True)) == 3


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_state():
    model = small_model(dtype=jnp.bfloat16)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    (logits, found), updated = jax.eval_shape(
        lambda v, x: model.apply(v, x, True, endpoints=True, mutable=["batch_stats"]),
        variables,
        IMAGES,
    )
    assert logits.dtype == jnp.float32 and found["features"].dtype == jnp.float32
    assert found["stem"].dtype == found["stage_1"].dtype == jnp.bfloat16
    leaves = jax.tree.leaves((variables, updated))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def test_dropout_follows_the_keys_of_examples():
    model, variables = small_model(dropout_rate=0.5), initial(small_model())
    one = np.repeat(IMAGES[:1], 4, 0)

    def apply(train: bool) -> Any:
        keys = jax.random.split(jax.random.key(1), 4)
        mutable = ["batch_stats"] if train else False
        result = model.apply(variables, one, train, dropout_keys=keys, mutable=mutable)
        return result[0] if train else result

    assert not np.allclose(apply(True)[0], apply(True)[1])  # one image, two masks
    np.testing.assert_array_equal(apply(True), apply(True))
    np.testing.assert_allclose(apply(False)[0], apply(False)[1], rtol=1e-6)
