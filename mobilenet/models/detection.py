"""SSDLite on MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, section 6.2), anchors and loss.

SSD (Liu et al. 2016, arXiv 1512.02325) predicts classes and box offsets for a fixed set of anchors
from maps of falling resolution; SSDLite makes its prediction layers separable. Layers, anchors, box
code and matching are those of the released model (TensorFlow Object Detection API,
`ssdlite_mobilenet_v2_coco.config`). The loss is SSD's own: a softmax with the background as one of
the classes, where that configuration has sigmoids.

Tables 5 and 6 at 320 x 320 pixels and 80 classes, against this module:

                               parameters             MACs
    SSD, prediction layers     14.8 M   14,776,629    1.25 B   1,259,068,672
    SSDLite, the same           2.1 M    2,113,141    0.35 B     177,617,344
    SSDLite, whole              4.3 M    4,337,013    0.8 B      788,830,144

Prediction layers are all behind the backbone. The 1.25 is ours cut off after two digits. The 0.35
is so too, but of twice the MACs: beside a backbone of 0.61 B the 0.8 B of the whole leave no room
for it. The released model with 90 classes has 4.475 M parameters with batch normalisation folded
(OpenVINO's model zoo); so has this module, 4,475,167.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from mobilenet.models.initializers import normal
from mobilenet.models.layers import ConvBNAct, ModuleDef
from mobilenet.models.mobilenet_v2 import MobileNetV2, last_at_strides

# Side of an anchor / side of the picture, on the first and the last map, and width / height.
ANCHOR_SCALES = (0.2, 0.95)
ASPECT_RATIOS = (1.0, 2.0, 0.5, 3.0, 1 / 3)
# Offsets of centres and logarithms of sizes are multiplied by these (Faster R-CNN's box code).
CENTRE_SCALE, SIZE_SCALE = 10.0, 5.0
MATCHED = 0.5  # intersection over union from which an anchor answers for a box


class ExtraMap(nn.Module):
    """A map of half the resolution: `reduce` to half the features, then a 3x3 step of 2.

    Attributes:
      conv, norm: module constructors bound by the network.
      features: of the result.
      separable: `depthwise` and 1x1 `project` in place of the dense `expand`.
    """

    conv: ModuleDef
    norm: ModuleDef
    features: int
    separable: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w F"]:
        layer = functools.partial(ConvBNAct, conv=self.conv, norm=self.norm)
        half = self.features // 2
        x = layer(features=half, name="reduce")(x, train)
        step = functools.partial(layer, kernel_size=3, strides=2)
        if not self.separable:
            return step(features=self.features, name="expand")(x, train)
        x = step(features=half, depthwise=True, name="depthwise")(x, train)
        return layer(features=self.features, name="project")(x, train)


class Prediction(nn.Module):
    """The prediction of one map: `predict`, a 3x3 convolution with bias, or `depthwise` and 1x1.

    Attributes:
      conv, norm: module constructors bound by the network.
      features: numbers predicted for one position.
      separable: 3x3 depthwise with batch normalisation and ReLU6, then 1x1 (SSDLite).
    """

    conv: ModuleDef
    norm: ModuleDef
    features: int
    separable: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W F"]:
        if self.separable:
            x = ConvBNAct(
                conv=self.conv,
                norm=self.norm,
                features=x.shape[-1],
                kernel_size=3,
                depthwise=True,
                name="depthwise",
            )(x, train)
        return self.conv(
            features=self.features,
            kernel_size=1 if self.separable else 3,
            use_bias=True,
            kernel_init=normal(0.03, bound=2.0),  # of the released configuration
            name="predict",
        )(x)


class SSDLite(nn.Module):
    """MobileNetV2 with SSD's prediction layers: classes and boxes for every anchor.

    The maps are the backbone's at its last two strides (`last_at_strides` with `expanded`: for
    Table 2 the expansion of the first block of stage 5, 576 channels at stride 16, and the head at
    32), and `extra_{i}`, each of half the resolution of the one before. Beside these and `backbone`
    there are `boxes_{i}` and `classes_{i}` for every map.

    Attributes:
      backbone: with `num_classes=0`; it has the names, shapes and meaning of the classifier's
        modules, so those parameters fit.
      num_classes: without the background.
      extra_features: channels of the additional maps.
      separable: depthwise and 1x1 convolutions behind the backbone (SSDLite); False has dense 3x3
        convolutions (SSD).

    `__call__` maps images [B, H, W, C], already normalised, to class logits [B, N, num_classes + 1]
    float32, of which 0 is the background, and boxes [B, N, 4] float32 in the code of `encode`, both
    in the order of `anchors`. In training `batch_stats` must be mutable.
    """

    backbone: MobileNetV2
    num_classes: int = 80
    extra_features: tuple[int, ...] = (512, 256, 256, 128)
    separable: bool = True

    def map_strides(self) -> tuple[int, ...]:
        """Image pixels for one pixel of each map, by falling resolution.

        Raises:
          ValueError: the backbone has one resolution only.
        """
        strides = list(last_at_strides(self.backbone.plan, expanded=True))[-2:]
        if len(strides) < 2:
            raise ValueError(
                f"The backbone has maps at stride {strides[0]} alone, and SSD reads two; give a "
                "block a stride of 2."
            )
        extra = (strides[-1] * 2 ** (i + 1) for i in range(len(self.extra_features)))
        return (*strides, *extra)

    def anchors(self, image_size: tuple[int, int]) -> np.ndarray:
        """Anchors [N, 4] float32 of pictures of (H, W) pixels; see `anchor_boxes`."""
        sizes = [
            (-(-image_size[0] // stride), -(-image_size[1] // stride))
            for stride in self.map_strides()
        ]
        return anchor_boxes(sizes, image_size)

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W C"], train: bool = False
    ) -> tuple[Float[Array, "B N K"], Float[Array, "B N 4"]]:
        conv, norm = self.backbone.constructors()
        bound = {"conv": conv, "norm": norm, "separable": self.separable}
        _, found = self.backbone(images, train, endpoints=True)
        names = last_at_strides(self.backbone.plan, expanded=True)
        maps = [found[names[stride]] for stride in self.map_strides()[:2]]
        for i, features in enumerate(self.extra_features):
            maps.append(ExtraMap(features=features, **bound, name=f"extra_{i}")(maps[-1], train))
        shapes = anchor_shapes(len(maps))

        def predict(name: str, numbers: int) -> Array:
            """`numbers` for every anchor of every map, [B, N, numbers]."""
            parts = []
            for i, x in enumerate(maps):
                features = len(shapes[i]) * numbers
                part = Prediction(features=features, **bound, name=f"{name}_{i}")(x, train)
                parts.append(part.astype(jnp.float32).reshape(x.shape[0], -1, numbers))
            return jnp.concatenate(parts, axis=1)

        return predict("classes", self.num_classes + 1), predict("boxes", 4)


def anchor_shapes(maps: int) -> list[np.ndarray]:
    """Heights and widths of each map's anchors at one position (arXiv 1512.02325, section 2.2).

    Scales rise evenly over the maps. Each has its scale in every aspect ratio, and a square of the
    geometric mean of its scale and the next; the first map, of the highest resolution, has three
    anchors alone, as in the released model.

    Args:
      maps: number of maps, at least 2.

    Returns:
      For each map [n, 2] float64, fractions of the picture's shorter side.
    """
    low, high = ANCHOR_SCALES
    scales = [*np.linspace(low, high, maps), 1.0]
    specs = [[(0.1, 1.0), (scales[0], 2.0), (scales[0], 0.5)]]
    for scale, larger in zip(scales[1:], scales[2:], strict=False):
        specs.append([*((scale, ratio) for ratio in ASPECT_RATIOS), (np.sqrt(scale * larger), 1.0)])
    return [
        np.array([(scale / np.sqrt(ratio), scale * np.sqrt(ratio)) for scale, ratio in spec])
        for spec in specs
    ]


def anchor_boxes(
    sizes: Sequence[tuple[int, int]], image_size: tuple[int, int] = (1, 1)
) -> np.ndarray:
    """Anchors around the centre of every position of every map.

    Args:
      sizes: rows and columns of each map, by falling resolution, at least 2 maps.
      image_size: (H, W) of the picture in any unit; square anchors are square in the picture.

    Returns:
      [N, 4] float32: centre y and x, height and width, as fractions of the picture. Maps come one
      after the other, then rows, columns and shapes.
    """
    relative = min(image_size) / np.array(image_size)
    found = []
    for (rows, columns), shapes in zip(sizes, anchor_shapes(len(sizes)), strict=True):
        y, x = (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns
        centres = np.stack(np.meshgrid(y, x, indexing="ij"), -1)[:, :, None]
        centres = np.broadcast_to(centres, (rows, columns, len(shapes), 2))
        spread = np.broadcast_to(shapes * relative, centres.shape)
        found.append(np.concatenate([centres, spread], -1).reshape(-1, 4))
    return np.concatenate(found).astype(np.float32)


def encode(boxes: Float[Array, "*n 4"], anchors: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Boxes relative to anchors, the numbers that the network predicts.

    Args:
      boxes: (top, left, bottom, right) as fractions of the picture.
      anchors: (centre y, centre x, height, width), of `anchor_boxes`.

    Returns:
      Offsets of the centre in anchor sizes, times 10, and logarithms of height and width relative
      to the anchor's, times 5.
    """
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    size = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 1e-6)  # an empty box has no logarithm
    offset = CENTRE_SCALE * (centre - anchors[..., :2]) / anchors[..., 2:]
    return jnp.concatenate([offset, SIZE_SCALE * jnp.log(size / anchors[..., 2:])], axis=-1)


def decode(code: Float[Array, "*n 4"], anchors: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """The inverse of `encode`: boxes (top, left, bottom, right) as fractions of the picture."""
    centre = code[..., :2] / CENTRE_SCALE * anchors[..., 2:] + anchors[..., :2]
    half = jnp.exp(code[..., 2:] / SIZE_SCALE) * anchors[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def overlaps(a: Float[Array, "M 4"], b: Float[Array, "N 4"]) -> Float[Array, "M N"]:
    """Intersection over union of all pairs of boxes (top, left, bottom, right), in [0, 1]."""
    top_left = jnp.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = jnp.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = jnp.prod(jnp.maximum(bottom_right - top_left, 0), axis=-1)
    area_a, area_b = (jnp.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) for boxes in (a, b))
    return shared / jnp.maximum(area_a[:, None] + area_b[None] - shared, 1e-12)


class Targets(NamedTuple):
    """What one picture's anchors should predict.

    Attributes:
      classes: [N] int32, 0 for the background.
      boxes: [N, 4] float32 in the code of `encode`; 0 for the background.
    """

    classes: Int[Array, " N"]
    boxes: Float[Array, "N 4"]


def match(
    anchors: Float[Array, "N 4"], boxes: Float[Array, "M 4"], labels: Int[Array, " M"]
) -> Targets:
    """Assigns the boxes of one picture to anchors (arXiv 1512.02325, section 2.2).

    An anchor answers for the box that it overlaps most, from `MATCHED` on; and whatever the
    overlap, every box has its best anchor. `jax.vmap` over boxes and labels makes it a batch.

    Args:
      anchors: of `anchor_boxes`.
      boxes: (top, left, bottom, right) as fractions of the picture; anything in rows of padding.
      labels: classes from 1; 0 marks padding.
    """
    half = anchors[:, 2:] / 2
    corners = jnp.concatenate([anchors[:, :2] - half, anchors[:, :2] + half], axis=-1)
    real = (labels > 0)[:, None]
    overlap = jnp.where(real, overlaps(boxes, corners), -1.0)
    best_anchor = jnp.argmax(overlap, axis=1)
    # Of several boxes with one best anchor the one that overlaps most has it.
    forced = (best_anchor[:, None] == jnp.arange(len(anchors))) & real
    chosen = jnp.argmax(jnp.where(forced.any(0), jnp.where(forced, overlap, -2.0), overlap), axis=0)
    positive = forced.any(0) | (overlap.max(0) >= MATCHED)
    classes = jnp.where(positive, labels[chosen], 0).astype(jnp.int32)
    code = encode(boxes[chosen], anchors)
    return Targets(classes, jnp.where(positive[:, None], code, 0.0))


def multibox_loss(
    class_logits: Float[Array, "B N K"],
    boxes: Float[Array, "B N 4"],
    targets: Targets,
    *,
    negatives_per_positive: float = 3.0,
) -> Float[Array, ""]:
    """SSD's loss (arXiv 1512.02325, section 2.2): smooth L1 on boxes, cross entropy on classes.

    Boxes count for matched anchors. Classes count for these and for the background anchors of each
    picture with the largest cross entropy (hard negative mining).

    Args:
      class_logits, boxes: of `SSDLite`.
      targets: of `match` for every picture: classes [B, N], boxes [B, N, 4].
      negatives_per_positive: background anchors a picture for each of its matched ones.

    Returns:
      A scalar: the sum of both over the batch / its matched anchors; 0 without any.
    """
    positive = targets.classes > 0
    entropy = optax.softmax_cross_entropy_with_integer_labels(class_logits, targets.classes)
    hardness = jnp.where(positive, -jnp.inf, jax.lax.stop_gradient(entropy))
    rank = jnp.argsort(jnp.argsort(-hardness, axis=1), axis=1)
    wanted = negatives_per_positive * positive.sum(axis=1, keepdims=True)
    counts = positive | (rank < jnp.minimum(wanted, (~positive).sum(axis=1, keepdims=True)))
    distance = optax.huber_loss(boxes, targets.boxes, delta=1.0).sum(-1)
    total = jnp.sum(entropy * counts) + jnp.sum(distance * positive)
    return total / jnp.maximum(jnp.sum(positive), 1)
