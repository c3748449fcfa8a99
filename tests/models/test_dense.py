"""Dense prediction: dilated convolutions, the heads, their published sizes, and training."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from mobilenet.models import cost, tracing
from mobilenet.models import detection as det
from mobilenet.models import segmentation as seg
from mobilenet.models.layers import Conv
from mobilenet.models.mobilenet_v2 import BlockSpec, MobileNetV2, plan_blocks

# Strides multiply to 16; few layers, because compiling a step is most of a test's time.
TINY = (
    BlockSpec(1, 8, 1, 1),
    BlockSpec(3, 16, 1, 2),
    BlockSpec(3, 24, 1, 2),
    BlockSpec(3, 24, 1, 2),
)


def totals(module: nn.Module, side: int) -> cost.Totals:
    return cost.totals(tracing.layer_costs(module, (side, side, 3)))


def backbone(**settings: Any) -> MobileNetV2:
    return MobileNetV2(plan_blocks(**settings), num_classes=0)


def tiny_backbone(**settings: Any) -> MobileNetV2:
    plan = plan_blocks(**{"blocks": TINY, "stem_features": 8, **settings})
    return MobileNetV2(plan, num_classes=0, bn_momentum=0.9, conv_form="grouped")


# Dilated convolutions.


@pytest.mark.parametrize(
    ("depthwise", "dilation", "form"),
    [
        (True, 2, "shifted"),
        (True, 3, "grouped"),
        (True, 4, "shifted"),
        (False, 2, "shifted"),
        (False, 6, "shifted"),
        (False, 6, "grouped"),
    ],
)
def test_dilated_convolutions_equal_xla_with_their_gradients(
    depthwise: bool, dilation: int, form: str
):
    x = np.random.default_rng(0).normal(size=(1, 9, 8, 3)).astype(np.float32)
    features = 3 if depthwise else 5
    layer: Any = Conv(
        features, kernel_size=3, dilation=dilation, depthwise=depthwise, padding="SAME", form=form
    )
    params = layer.init(jax.random.key(0), x)["params"]
    assert params["kernel"].shape == (3, 3, 1 if depthwise else 3, features)

    def reference(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "SAME",
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=3 if depthwise else 1,
        )

    def value(kernel: jax.Array, x: jax.Array) -> Any:
        return layer.apply({"params": {"kernel": kernel}}, x)

    def with_gradients(function: Callable[..., Any]) -> Any:
        y, pull = jax.vjp(function, params["kernel"], x)
        return y, *pull(jnp.sin(y))

    for got, expected in zip(
        jax.jit(lambda: with_gradients(value))(),
        jax.jit(lambda: with_gradients(reference))(),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depthwise", [True, False])
def test_a_dilation_below_one_is_refused(depthwise: bool):
    layer = Conv(2, kernel_size=3, dilation=0, depthwise=depthwise)
    with pytest.raises(ValueError, match="dilation must be .*1.*, got 0"):
        layer.init(jax.random.key(0), jnp.ones((1, 4, 4, 2)))


# DeepLabv3: Table 7.


def tensorflow_side(side: int, rate: int) -> int:
    """Side of the map that TensorFlow computes for a 3x3 atrous convolution of a map.

    `tf.nn.atrous_conv2d` pads the map by the window's reach and on to a multiple of the rate, cuts
    it into rate x rate images, and convolves each without padding.
    """
    return (-(-(side + 2 * rate) // rate) - 2) * rate if rate > 1 else side


def tensorflow_macs(model: seg.DeepLabV3, side: int) -> int:
    """MACs with atrous convolutions counted at `tensorflow_side`."""
    plan = model.backbone.plan
    rates = {f"{block.name}/depthwise": block.dilation for block in plan.blocks}
    rates |= {f"atrous_{i}": rate for i, rate in enumerate(model.aspp_rates)}
    layers = cost.layer_costs(plan, (side, side, 3), 0)
    sides = [layer.out_shape[0] for layer in layers]
    head = [row for row in tracing.layer_costs(model, (65, 65, 3)) if "backbone" not in row.name]
    sides += [1 if layer.name == "image_pooling" else sides[-1] for layer in head]
    return sum(
        layer.weights * tensorflow_side(size, rates.get(layer.name, 1)) ** 2
        for layer, size in zip([*layers, *head], sides, strict=True)
    )


@pytest.mark.parametrize(
    ("rates", "params", "macs"),
    [((), 2_113_557, 2_740_709_056), (seg.ASPP_RATES, 4_523_541, 5_363_508_928)],
)
def test_deeplab_has_the_parameters_of_table_seven(rates: tuple[int, ...], params: int, macs: int):
    model = seg.DeepLabV3(backbone(head_features=0, output_stride=16), aspp_rates=rates)
    found = totals(model, 513)
    assert (found.params, found.macs) == (params, macs)
    assert round(found.params / 1e6, 2) == (4.52 if rates else 2.11)
    # The printed 2.75 and 5.8: the atrous convolutions as TensorFlow's graph has them.
    printed = 5.8 if rates else 2.75
    assert tensorflow_macs(model, 513) / 1e9 == pytest.approx(printed, rel=0.005)


def test_deeplab_over_scales_and_flips_has_the_macs_of_table_seven():
    # Output stride 8, scales of the released evaluation (0.5, 0.75, ..., 1.75), with mirror images.
    scales = [int(512 * (0.5 + 0.25 * i)) + 1 for i in range(6)]
    for rates, printed in (((), 152.6), ((12, 24, 36), 387.0)):
        model = seg.DeepLabV3(backbone(head_features=0, output_stride=8), aspp_rates=rates)
        macs = 2 * sum(tensorflow_macs(model, side) for side in scales) / 1e9
        assert macs == pytest.approx(printed, rel=0.0015)


def test_parameters_of_a_classifier_fit_the_backbone():
    classifier = MobileNetV2(plan_blocks(blocks=TINY, stem_features=8), num_classes=5)
    images = jnp.ones((1, 33, 33, 3))
    variables = jax.eval_shape(classifier.init, jax.random.key(0), images)
    model = seg.DeepLabV3(tiny_backbone(head_features=0, output_stride=8), num_classes=2)
    wanted = jax.eval_shape(model.init, jax.random.key(0), images)
    for kind in ("params", "batch_stats"):
        own = {name: variables[kind][name] for name in model.backbone.modules}
        assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, wanted[kind]["backbone"])


def test_upsampling_aligns_corners():
    x = jnp.asarray([[0.0, 2.0, 4.0], [8.0, 10.0, 12.0]])[None, :, :, None]
    y = seg.upsample(x, (3, 5))[0, :, :, 0]
    np.testing.assert_allclose(y, [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9, 10, 11, 12]], atol=1e-6)
    np.testing.assert_array_equal(seg.upsample(jnp.full((1, 1, 1, 2), 3.0), (4, 5)), 3)


def test_void_pixels_do_not_count():
    logits = jnp.asarray([[[[0.0, 0.0], [0.0, jnp.log(3.0)]]]])
    labels = jnp.asarray([[[0, 1]]])
    both = seg.pixel_cross_entropy(logits, labels)
    np.testing.assert_allclose(both, (np.log(2) + np.log(4 / 3)) / 2, rtol=1e-6)
    one = seg.pixel_cross_entropy(logits, labels.at[0, 0, 0].set(seg.VOID))
    np.testing.assert_allclose(one, np.log(4 / 3), rtol=1e-6)
    assert seg.pixel_cross_entropy(logits, jnp.full_like(labels, seg.VOID)) == 0


# SSDLite: Tables 5 and 6.


def prediction_layers(model: det.SSDLite, side: int) -> tuple[int, int]:
    """Parameters and MACs of everything after the backbone."""
    whole, before = totals(model, side), totals(model.backbone, side)
    return whole.params - before.params, whole.macs - before.macs


def test_prediction_layers_have_the_sizes_of_table_five():
    params, macs = prediction_layers(det.SSDLite(backbone(), separable=False), 320)
    assert (params, macs) == (14_776_629, 1_259_068_672)
    assert round(params / 1e6, 1) == 14.8
    assert macs // 10**7 == 125  # the printed 1.25 is cut off

    params, macs = prediction_layers(det.SSDLite(backbone()), 320)
    assert (params, macs) == (2_113_141, 177_617_344)
    assert round(params / 1e6, 1) == 2.1
    assert 2 * macs // 10**7 == 35  # the printed 0.35 is of twice the MACs


def test_ssdlite_has_the_size_of_table_six_and_of_the_released_model():
    found = totals(det.SSDLite(backbone()), 320)
    assert round(found.params / 1e6, 1) == 4.3
    assert round(found.macs / 1e9, 1) == 0.8
    # openvinotoolkit/open_model_zoo, ssdlite_mobilenet_v2.md: 4.475 M, BN folded, 90 classes.
    assert (
        round(totals(det.SSDLite(backbone(), num_classes=90), 300).params_folded / 1e6, 3) == 4.475
    )


@pytest.mark.parametrize(
    ("image", "anchors"), [((320, 320), 2034), ((300, 300), 1917), ((97, 161), 435)]
)
def test_ssdlite_predicts_for_every_anchor(image: tuple[int, int], anchors: int):
    model: Any = det.SSDLite(backbone(width_multiplier=0.35), num_classes=7)
    images = jax.ShapeDtypeStruct((2, *image, 3), jnp.float32)
    (classes, boxes), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert classes.shape == (2, anchors, 8) and boxes.shape == (2, anchors, 4)
    assert model.anchors(image).shape == (anchors, 4)


def test_ssdlite_reads_the_expansion_at_stride_sixteen_and_the_head():
    rows = {row.name: row for row in tracing.layer_costs(det.SSDLite(backbone()), (320, 320, 3))}
    assert rows["classes_0/depthwise"].in_shape == (20, 20, 576)
    assert rows["classes_1/depthwise"].in_shape == (10, 10, 1280)
    outputs = [rows[f"boxes_{i}/predict"].out_shape for i in range(6)]
    assert outputs == [(20, 20, 12), (10, 10, 24), (5, 5, 24), (3, 3, 24), (2, 2, 24), (1, 1, 24)]


def test_ssdlite_refuses_a_backbone_of_one_resolution():
    plan = plan_blocks(blocks=(BlockSpec(1, 8, 1, 1),), stem_strides=1)
    with pytest.raises(ValueError, match="maps at stride 1 only"):
        det.SSDLite(MobileNetV2(plan, num_classes=0)).anchors((32, 32))


def test_anchors_are_those_of_the_released_model():
    shapes = det.anchor_shapes(6)
    assert [len(shape) for shape in shapes] == [3, 6, 6, 6, 6, 6]
    # Scales 0.2, 0.35, 0.5, 0.65, 0.8, 0.95; ratio 2 is wide.
    np.testing.assert_allclose(shapes[0][0], [0.1, 0.1])
    np.testing.assert_allclose(shapes[0][1], [0.2 / 2**0.5, 0.2 * 2**0.5])
    np.testing.assert_allclose(shapes[1][0], [0.35, 0.35])
    np.testing.assert_allclose(shapes[1][5], [0.175**0.5] * 2)
    np.testing.assert_allclose(shapes[5][5], [0.95**0.5] * 2)
    boxes = det.anchor_boxes([(1, 2), (1, 1)], (50, 100))
    assert boxes.shape == (2 * 3 + 6, 4) and boxes.dtype == np.float32
    np.testing.assert_allclose(boxes[3], [0.5, 0.75, 0.1, 0.05], rtol=1e-6)  # square in pixels


def test_box_code_is_that_of_faster_rcnn_and_is_undone():
    anchors = jnp.asarray([[0.5, 0.5, 0.2, 0.4]])
    box = jnp.asarray([[0.42, 0.4, 0.62, 1.2]])  # centre (0.52, 0.8), size 0.2 x 0.8
    np.testing.assert_allclose(
        det.encode(box, anchors), [[1.0, 7.5, 0.0, 5 * np.log(2)]], atol=1e-5
    )
    np.testing.assert_allclose(det.decode(det.encode(box, anchors), anchors), box, atol=1e-6)


def test_matching():
    anchors = jnp.asarray(
        [[0.25, 0.25, 0.5, 0.5], [0.25, 0.75, 0.5, 0.5], [0.75, 0.25, 0.5, 0.5], [0.5, 0.5, 1, 1]]
    )
    boxes = jnp.asarray(
        [
            [0.0, 0.0, 0.5, 0.5],  # the first anchor itself
            [0.6, 0.0, 0.8, 0.2],  # overlaps the third by 0.16 only: forced
            [0.1, 0.1, 0.5, 0.5],  # best is the first, which the first box has
            [0.0, 0.0, 1.0, 1.0],  # padding
        ]
    )
    match: Any = jax.jit(det.match)
    found = match(anchors, boxes, jnp.asarray([3, 2, 1, 0]))
    np.testing.assert_array_equal(found.classes, [3, 0, 2, 0])
    expected = det.encode(boxes[:2], anchors[jnp.asarray([0, 2])])
    np.testing.assert_allclose(found.boxes[jnp.asarray([0, 2])], expected, atol=1e-6)
    np.testing.assert_array_equal(found.boxes[jnp.asarray([1, 3])], 0)
    nothing = match(anchors, boxes, jnp.zeros(4, jnp.int32))
    np.testing.assert_array_equal(nothing.classes, 0)
    assert np.all(np.isfinite(nothing.boxes))


def test_multibox_loss_counts_the_hardest_negatives():
    # One matched anchor, then negatives whose cross entropy falls with the place.
    hard = np.array([0.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    logits = jnp.asarray(np.stack([np.zeros(6), hard], -1)[None], jnp.float32)
    classes = jnp.asarray([[1, 0, 0, 0, 0, 0]])
    code = jnp.zeros((1, 6, 4)).at[0, 0].set(jnp.asarray([0.5, -0.5, 3.0, 0.0])).at[0, 1].set(9.0)
    targets = det.Targets(classes, jnp.zeros((1, 6, 4)))
    smooth = 0.125 + 0.125 + 2.5
    entropy = np.log(2) + sum(np.log1p(np.exp(x)) for x in (4.0, 3.0))
    np.testing.assert_allclose(
        det.multibox_loss(logits, code, targets, negatives_per_positive=2),
        smooth + entropy,
        rtol=1e-6,
    )
    none = det.Targets(jnp.zeros_like(classes), targets.boxes)
    assert det.multibox_loss(logits, code, none) == 0


# Training on images made here.


def squares(random: np.random.Generator, count: int, side: int, classes: int) -> Any:
    """One coloured square per image on noise: images, masks, boxes [B, 4], labels [B] from 1."""
    images = random.normal(0, 0.3, (count, side, side, 3)).astype(np.float32)
    masks = np.zeros((count, side, side), np.int32)
    boxes = np.zeros((count, 4), np.float32)
    labels = random.integers(1, classes + 1, count)
    for i, label in enumerate(labels):
        size = random.integers(side // 4, side // 2)
        top, left = random.integers(0, side - size, 2)
        images[i, top : top + size, left : left + size, label - 1] += 2
        masks[i, top : top + size, left : left + size] = label
        boxes[i] = np.array([top, left, top + size, left + size]) / side
    return images, masks, boxes, labels


# Compiling takes longer than what is computed: let it optimise less.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def train(
    model: Any, loss: Callable[..., jax.Array], batches: Any, learning_rate: float
) -> tuple[Any, list[float]]:
    """Adam over batches (images, *targets); `loss` takes the model's output and the targets."""
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x))(batches[0][0])
    optimizer = optax.adam(learning_rate)
    params, stats = variables["params"], variables["batch_stats"]

    @quick_jit
    def step(params: Any, stats: Any, moments: Any, images: Any, *targets: Any) -> Any:
        def objective(params: Any) -> Any:
            output, updated = model.apply(
                {"params": params, "batch_stats": stats}, images, True, mutable=["batch_stats"]
            )
            return loss(output, *targets), updated["batch_stats"]

        (value, stats), gradient = jax.value_and_grad(objective, has_aux=True)(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), stats, moments, value

    moments, values = jax.jit(optimizer.init)(params), []
    for batch in batches:
        params, stats, moments, value = step(params, stats, moments, *batch)
        values.append(float(value))
    return {"params": params, "batch_stats": stats}, values


@pytest.mark.slow
def test_deeplab_learns_to_segment_squares():
    random = np.random.default_rng(0)
    model = seg.DeepLabV3(
        tiny_backbone(head_features=0, output_stride=8),
        num_classes=3,
        aspp_rates=(2,),
        features=32,
    )
    batches = [squares(random, 8, 65, 2)[:2] for _ in range(45)]
    variables, losses = train(model, seg.pixel_cross_entropy, batches, 1e-2)
    assert np.mean(losses[-5:]) < 0.4 * np.mean(losses[:5])
    images, masks, _, _ = squares(random, 32, 65, 2)
    logits: Any = quick_jit(model.apply)(variables, images)
    assert logits.shape == (32, 65, 65, 3) and logits.dtype == jnp.float32
    right = np.argmax(logits, -1) == masks
    majority = np.mean(masks == 0)
    assert right.mean() > majority + 0.08
    assert all(right[masks == label].mean() > 0.8 for label in (1, 2))


@pytest.mark.slow
def test_ssdlite_learns_to_find_squares():
    random = np.random.default_rng(0)
    model = det.SSDLite(
        tiny_backbone(blocks=TINY[:3], head_features=64), num_classes=3, extra_features=(32,)
    )
    anchors = jnp.asarray(model.anchors((32, 32)))
    match: Any = jax.vmap(functools.partial(det.match, anchors))

    def loss(output: Any, boxes: Any, labels: Any) -> jax.Array:
        logits, code = output
        return det.multibox_loss(logits, code, match(boxes, labels))

    def batch(count: int) -> tuple[Any, Any, Any]:
        images, _, boxes, labels = squares(random, count, 32, 3)
        # A second row of padding, as batches of images with several objects have.
        return images, np.stack([boxes, boxes * 0], 1), np.stack([labels, labels * 0], 1)

    variables, losses = train(model, loss, [batch(16) for _ in range(60)], 1e-2)
    assert np.mean(losses[-5:]) < 0.3 * np.mean(losses[:5])
    images, boxes, labels = batch(64)
    logits, code = quick_jit(model.apply)(variables, images)
    scores = np.asarray(jax.nn.softmax(logits))[..., 1:]
    best = scores.max(-1).argmax(-1)
    image = np.arange(len(images))
    found = det.decode(code[image, best], anchors[best])
    overlap = jax.vmap(lambda a, b: det.overlaps(a[None], b[None])[0, 0])(found, boxes[:, 0])
    label = scores[image, best].argmax(-1) + 1
    assert np.mean(label == labels[:, 0]) > 0.9
    assert np.mean(overlap > 0.5) > 0.8
