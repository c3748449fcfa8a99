"""The network: plan, shapes, ablation switches, dtypes, and properties of its function."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet.models.layers import make_divisible
from mobilenet.models.mobilenet_v2 import (
    PAPER_BLOCKS,
    BlockSpec,
    MobileNetV2,
    last_at_strides,
    plan_blocks,
)
from mobilenet.models.normalization import ACTIVATIONS, activate

# Two stages, one of them with a shortcut: small enough to compile in a second or two.
SMALL = (BlockSpec(1, 8, 1, 1), BlockSpec(2, 8, 3, 2))


def small_model(**settings: Any) -> Any:
    names = {field.name for field in dataclasses.fields(MobileNetV2)}
    model = {k: settings.pop(k) for k in list(settings) if k in names}
    plan = plan_blocks(blocks=SMALL, stem_features=8, head_features=16, **settings)
    return MobileNetV2(plan, **{"num_classes": 5, **model})


def run(model: Any, images: Any, train: bool = False, **kwargs: Any) -> Any:
    variables = model.init(jax.random.key(0), images)
    return model.apply(
        variables, images, train, mutable=["batch_stats"] if train else False, **kwargs
    )


IMAGES = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)


def test_plan_is_table_two():
    plan = plan_blocks()
    assert len(plan.blocks) == 17
    assert sum(block.shortcut == "identity" for block in plan.blocks) == 10
    assert [b.features for b in plan.blocks] == (
        [16] + [24] * 2 + [32] * 3 + [64] * 4 + [96] * 3 + [160] * 3 + [320]
    )
    assert [b.strides for b in plan.blocks] == [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    assert (plan.stem_features, plan.head_features) == (32, 1280)
    assert not plan.blocks[0].expands and all(b.expands for b in plan.blocks[1:])


@pytest.mark.parametrize(
    ("value", "divisor", "expected"),
    [(44.8, 8, 48), (33.6, 8, 32), (11.2, 8, 16), (4, 8, 8), (22.4, 8, 24), (44.8, 1, 45)],
)
def test_make_divisible(value: float, divisor: int, expected: int):
    assert make_divisible(value, divisor) == expected


def test_head_keeps_its_width_below_one_unless_told():
    assert plan_blocks(width_multiplier=0.35).head_features == 1280
    assert plan_blocks(width_multiplier=0.35, shrink_head=True).head_features == 448
    assert plan_blocks(width_multiplier=1.4).head_features == 1792


def test_expansion_ratio_number_spares_the_first_stage_and_a_tuple_does_not():
    one = plan_blocks(expansion_ratio=3.0)
    assert one.blocks[0].expanded_features == 32 and one.blocks[1].expanded_features == 48
    per_stage = plan_blocks(expansion_ratio=(2, 1, 1, 1, 1, 1, 0.5))
    assert per_stage.blocks[0].expanded_features == 64 and per_stage.blocks[0].expands
    assert not per_stage.blocks[1].expands
    assert per_stage.blocks[-1].expanded_features == 80  # the classical bottleneck: t below 1


def endpoint_shapes(plan: Any, side: int) -> dict[str, tuple[int, ...]]:
    """(H, W, C) of every endpoint of an image of `side` pixels, from a trace."""
    model: Any = MobileNetV2(plan, num_classes=7)
    image = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    (logits, found), _ = jax.eval_shape(
        lambda key, x: model.init_with_output(key, x, endpoints=True), jax.random.key(0), image
    )
    assert logits.shape == (2, 7) and logits.dtype == jnp.float32
    return {name: x.shape[1:] for name, x in found.items()}


@pytest.mark.parametrize(
    ("side", "sizes"),
    [(224, (112, 56, 28, 14, 7)), (320, (160, 80, 40, 20, 10)), (513, (257, 129, 65, 33, 17))],
)
def test_endpoints_have_the_strides_of_the_paper(side: int, sizes: tuple[int, ...]):
    shapes = endpoint_shapes(plan_blocks(), side)
    features = {
        "stem": (0, 32), "stage_0": (0, 16), "blocks_1_0/expand": (0, 96), "stage_1": (1, 24),
        "blocks_2_0/expand": (1, 144), "stage_2": (2, 32), "blocks_3_0/expand": (2, 192),
        "stage_3": (3, 64), "stage_4": (3, 96), "blocks_5_0/expand": (3, 576), "stage_5": (4, 160),
        "stage_6": (4, 320), "head": (4, 1280),
    }  # fmt: skip
    expected = {name: (sizes[at], sizes[at], c) for name, (at, c) in features.items()}
    assert shapes == {**expected, "features": (1280,)}


@pytest.mark.parametrize(
    ("output_stride", "last"), [(32, (33, 33, 17)), (16, (33, 33, 33)), (8, (65, 65, 65))]
)
def test_endpoints_keep_the_output_stride(output_stride: int, last: tuple[int, ...]):
    shapes = endpoint_shapes(plan_blocks(output_stride=output_stride), 513)
    assert shapes["stage_2"] == (65, 65, 32)
    assert [shapes[name][0] for name in ("stage_3", "stage_4", "stage_6")] == list(last)


def test_last_endpoint_at_every_stride():
    assert last_at_strides(plan_blocks()) == {
        2: "stage_0", 4: "stage_1", 8: "stage_2", 16: "stage_4", 32: "head",
    }  # fmt: skip
    assert last_at_strides(plan_blocks(), expanded=True) == {
        2: "blocks_1_0/expand", 4: "blocks_2_0/expand", 8: "blocks_3_0/expand",
        16: "blocks_5_0/expand", 32: "head",
    }  # fmt: skip
    dilated = plan_blocks(output_stride=8, head_features=0)
    assert list(last_at_strides(dilated).items())[-1] == (8, "stage_6")
    cifar = plan_blocks(stem_strides=1, stage_strides=(1, 1, 2, 2, 1, 2, 1))
    assert list(last_at_strides(cifar)) == [1, 2, 4, 8]
    # Without an expansion the tensor before a reducing block is the last stage's output.
    assert last_at_strides(plan_blocks(expansion_ratio=1), expanded=True)[16] == "stage_4"


def test_every_named_endpoint_exists_at_its_stride():
    for plan in (plan_blocks(), plan_blocks(output_stride=16, head_features=0)):
        shapes = endpoint_shapes(plan, 320)
        for expanded in (False, True):
            for stride, name in last_at_strides(plan, expanded=expanded).items():
                assert shapes[name][0] == 320 // stride


def test_output_stride_turns_strides_into_dilation():
    def numbers(output_stride: int | None) -> list[tuple[int, int]]:
        return [(b.strides, b.dilation) for b in plan_blocks(output_stride=output_stride).blocks]

    plain = [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    assert numbers(None) == numbers(32) == [(strides, 1) for strides in plain]
    # Block 13 (blocks_5_0) keeps stride 1 and rate 1, those after it have rate 2.
    assert numbers(16) == [(s, 1) for s in plain[:13]] + [(1, 1)] + [(1, 2)] * 3
    # Block 6 (blocks_3_0) first, then rate 2, and from block 14 on rate 4.
    assert numbers(8) == [(s, 1) for s in plain[:6]] + [(1, 1)] + [(1, 2)] * 7 + [(1, 4)] * 3


@pytest.mark.parametrize("form", [{}, {"shortcut_projection": True}, {"shortcut": "expansion"}])
def test_output_stride_changes_no_parameter_and_no_shortcut(form: dict[str, Any]):
    # Stride 2 with equal widths too, where a stride of 1 would have a shortcut.
    blocks = (*PAPER_BLOCKS[:5], BlockSpec(6, 96, 3, 2))
    strided, dilated = (plan_blocks(blocks=blocks, output_stride=s, **form) for s in (None, 8))
    plain = [dataclasses.replace(b, strides=1, dilation=1) for b in strided.blocks]
    assert [dataclasses.replace(b, strides=1, dilation=1) for b in dilated.blocks] == plain


@pytest.mark.parametrize(
    ("padding", "offset"),
    [
        ("SYMMETRIC", 0),  # windows around every second pixel from the first on
        ("SAME", 1),  # TensorFlow's on even sides: from the second on, at every stride anew
    ],
)
def test_dilated_features_are_the_strided_ones_and_those_between(padding: Any, offset: int):
    blocks = (
        BlockSpec(1, 8, 1, 2), BlockSpec(2, 8, 1, 2), BlockSpec(2, 8, 2, 2), BlockSpec(2, 12, 2, 2),
    )  # fmt: skip
    plans = {s: plan_blocks(blocks=blocks, stem_features=8, head_features=16, output_stride=s)
             for s in (None, 8)}  # fmt: skip
    images = np.random.default_rng(1).normal(size=(1, 64, 64, 3)).astype(np.float32)
    models = {
        s: MobileNetV2(plan, 0, padding=padding, conv_form="grouped") for s, plan in plans.items()
    }
    variables = disturbed(models[None], images)
    strided, dilated = (
        jax.jit(lambda v, x, m=model: m.apply(v, x, endpoints=True)[1])(variables, images)
        for model in models.values()
    )
    for name, rate in (("stage_1", 1), ("stage_2", 2), ("stage_3", 4), ("head", 4)):
        first = offset * (rate - 1)
        between = dilated[name][:, first::rate, first::rate]
        assert dilated[name].shape[1:3] == (8, 8)
        np.testing.assert_allclose(between, strided[name], rtol=1e-4, atol=1e-4)
        assert np.abs(strided[name]).max() > 0.1


def disturbed(model: Any, images: Any) -> Any:
    """Variables in which no bias or mean is 0 and no scale or variance is 1."""
    variables = jax.jit(model.init)(jax.random.key(0), images)
    random = np.random.default_rng(2)
    return jax.tree.map(
        lambda x: x + random.uniform(0.1, 0.4, x.shape).astype(np.float32), variables
    )


def test_submodule_names_are_the_public_ones():
    model = small_model(se_ratio=0.25)
    params = model.init(jax.random.key(0), IMAGES)["params"]
    assert set(params) == {
        "stem", "blocks_0_0", "blocks_1_0", "blocks_1_1", "blocks_1_2", "head", "classifier",
    }  # fmt: skip
    assert set(params["blocks_1_0"]) == {"expand", "depthwise", "se", "project"}
    assert set(params["blocks_0_0"]) == {"depthwise", "se", "project"}
    assert set(params["stem"]) == {"conv", "bn"}
    assert params["blocks_1_0"]["depthwise"]["conv"]["kernel"].shape == (3, 3, 1, 16)


def test_zero_classes_is_the_feature_extractor():
    features = run(small_model(num_classes=0), IMAGES)
    assert features.shape == (4, 16)


def test_head_can_be_left_out():
    model = MobileNetV2(plan_blocks(blocks=SMALL, head_features=0), num_classes=0)
    assert run(model, IMAGES).shape == (4, 8)


def test_shortcut_variants_share_parameters_and_differ_in_function():
    models = {kind: small_model(shortcut=kind) for kind in ("bottleneck", "expansion", "none")}
    variables = models["bottleneck"].init(jax.random.key(0), IMAGES)
    outputs = {kind: model.apply(variables, IMAGES) for kind, model in models.items()}
    assert not np.allclose(outputs["bottleneck"], outputs["none"])
    assert not np.allclose(outputs["expansion"], outputs["none"])
    assert not np.allclose(outputs["expansion"], outputs["bottleneck"])


def test_expansion_shortcuts_are_as_many_as_bottleneck_shortcuts():
    count = {
        kind: sum(b.shortcut != "none" for b in plan_blocks(shortcut=kind).blocks)
        for kind in ("bottleneck", "expansion", "none")
    }
    assert count == {"bottleneck": 10, "expansion": 10, "none": 0}


def test_identity_shortcut_adds_the_input():
    # With the projection's BN scale at zero, a residual block must hand its input on unchanged.
    model = small_model()
    variables = model.init(jax.random.key(0), IMAGES)
    scale = variables["params"]["blocks_1_1"]["project"]["bn"]["scale"]
    variables["params"]["blocks_1_1"]["project"]["bn"]["scale"] = jnp.zeros_like(scale)
    captured = model.apply(
        variables, IMAGES, capture_intermediates=lambda m, _: (m.name or "").startswith("blocks_1_")
    )[1]["intermediates"]
    before, after = (captured[f"blocks_1_{i}"]["__call__"][0][0] for i in (0, 1))
    np.testing.assert_array_equal(before, after)


def test_bottleneck_activation_makes_outputs_non_negative():
    def lowest(activation: str) -> float:
        model = small_model(bottleneck_activation=activation, shortcut="none")
        return float(run(model, IMAGES, endpoints=True)[1]["stage_1"].min())

    assert lowest("identity") < 0
    assert lowest("relu6") >= 0


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations(name: str):
    x = np.array([-7.0, -1.0, 0.0, 2.0, 9.0], np.float32)
    expected = {
        "identity": x,
        "relu": [0, 0, 0, 2, 9],
        "relu6": [0, 0, 0, 2, 6],
        "hard_swish": x * np.clip(x + 3, 0, 6) / 6,
    }[name]
    np.testing.assert_allclose(activate(jnp.asarray(x), name), expected, rtol=1e-6)
    assert np.all(np.isfinite(run(small_model(activation=name), IMAGES)))


def test_padding_conventions_differ_only_where_a_stride_is_two():
    outputs = {}
    for padding in ("SAME", "SYMMETRIC"):
        model = small_model(padding=padding, stem_strides=1, stage_strides=(1, 1))
        outputs[padding] = run(model, IMAGES)
    np.testing.assert_array_equal(outputs["SAME"], outputs["SYMMETRIC"])
    strided = [run(small_model(padding=p), IMAGES) for p in ("SAME", "SYMMETRIC")]
    assert not np.allclose(*strided)


@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid"])
def test_squeeze_excite_gates_channels(gate: str):
    model = small_model(se_ratio=0.5, se_gate=gate)
    variables = model.init(jax.random.key(0), IMAGES)
    plain = small_model()
    without = {k: v for k, v in variables["params"].items()}
    shut = jax.tree_util.tree_map_with_path(
        lambda path, x: (
            jnp.full_like(x, -1e3)
            if [getattr(k, "key", "") for k in path][-3:] == ["se", "expand", "bias"]
            else x
        ),
        variables["params"],
    )
    # A gate forced shut zeroes what it scales, so nothing of the image is left.
    closed = model.apply({**variables, "params": shut}, IMAGES)
    np.testing.assert_allclose(closed, jnp.broadcast_to(closed[:1], closed.shape), atol=1e-5)
    assert model.apply(variables, IMAGES).shape == (4, 5)
    assert not np.allclose(
        model.apply(variables, IMAGES),
        plain.apply({"params": _drop_se(without), "batch_stats": variables["batch_stats"]}, IMAGES),
    )


def _drop_se(params: Any) -> Any:
    return {
        k: {n: v for n, v in block.items() if n != "se"} if k.startswith("blocks") else block
        for k, block in params.items()
    }


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_state():
    model = small_model(dtype=jnp.bfloat16, se_ratio=0.25)
    variables = model.init(jax.random.key(0), IMAGES)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    (logits, found), updated = model.apply(
        variables, IMAGES, True, endpoints=True, mutable=["batch_stats"]
    )
    assert logits.dtype == jnp.float32 and found["stage_1"].dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(updated)} == {jnp.dtype("float32")}
    exact = small_model(se_ratio=0.25).apply(variables, IMAGES, True, mutable=["batch_stats"])[0]
    np.testing.assert_allclose(logits, exact, atol=0.1)


@pytest.mark.slow
def test_remat_and_convolution_forms_change_nothing():
    def value(model: Any) -> tuple[Any, Any]:
        variables = small_model().init(jax.random.key(0), IMAGES)

        def loss(params: Any) -> Any:
            logits, _ = model.apply(
                {**variables, "params": params}, IMAGES, True, mutable=["batch_stats"]
            )
            return jnp.sum(logits**2)

        return jax.jit(jax.value_and_grad(loss))(variables["params"])

    expected = value(small_model(conv_form="grouped"))
    for model in (small_model(conv_form="shifted"), small_model(conv_form="shifted", remat=True)):
        got = value(model)
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-4)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                a, b, rtol=1e-3, atol=1e-3 * float(jnp.abs(b).max()) + 1e-6
            ),
            got[1],
            expected[1],
        )


def test_dropout_follows_the_keys_of_examples():
    model = small_model(dropout_rate=0.5)
    variables = model.init(jax.random.key(0), IMAGES)
    keys = jax.random.split(jax.random.key(1), 4)

    def apply(images: Any, keys: Any) -> Any:
        # Running statistics, so that examples do not meet in the batch statistics.
        return model.apply(variables, images, True, dropout_keys=keys, mutable=["batch_stats"])[0]

    whole = apply(np.repeat(IMAGES[:1], 4, 0), keys)
    assert not np.allclose(whole[0], whole[1])  # one image, two masks
    again = apply(np.repeat(IMAGES[:1], 4, 0), keys)
    np.testing.assert_array_equal(whole, again)
    with_stream = model.apply(
        variables, IMAGES, True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)}
    )[0]
    assert with_stream.shape == (4, 5)


def test_evaluation_does_not_touch_statistics():
    model = small_model()
    variables = model.init(jax.random.key(0), IMAGES)
    _, updated = model.apply(variables, IMAGES, False, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage_strides": (1, 2)}, "stage_strides has 2 values for 7 stages"),
        ({"expansion_ratio": (6, 6)}, "expansion_ratio has 2 values for 7 stages"),
        ({"output_stride": 4}, "output_stride is 4; .* multiply to 32, .* None, 8, 16, 32"),
        (
            {"output_stride": 16, "stem_strides": 1, "stage_strides": (1, 1, 2, 2, 1, 2, 1)},
            "strides multiply to 8, so allowed are None, 8",
        ),
        ({"shortcut": "wide"}, "allowed are bottleneck, expansion, none"),
        ({"se_ratio": 0.25, "se_base": "output"}, "allowed are input, expanded"),
    ],
)
def test_plans_that_do_not_fit_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        plan_blocks(**settings)
