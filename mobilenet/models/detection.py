"""SSDLite on MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, section 6.2), anchors and loss.

SSD (Liu et al. 2016, arXiv 1512.02325) predicts classes and box offsets for a fixed set of anchors
from maps of decreasing resolution. SSDLite makes the prediction layers separable. Layers, anchors,
box code and matching are those of the released model (TensorFlow Object Detection API,
`ssdlite_mobilenet_v2_coco.config`). The loss is that of SSD: a softmax in which the background is
one of the classes. The released configuration uses sigmoids.

Tables 5 and 6 of the paper at 320 x 320 pixels and 80 classes (first number), and the values of
this module (second number):

                               parameters             MACs
    SSD, prediction layers     14.8 M   14,776,629    1.25 B   1,259,068,672
    SSDLite, the same           2.1 M    2,113,141    0.35 B     177,617,344
    SSDLite, whole              4.3 M    4,337,013    0.8 B      788,830,144

"Prediction layers" are all layers after the backbone. The paper's 1.25 is our value, cut off after
two digits. The paper's 0.35 is twice our value, cut off in the same way: with a backbone of 0.61 B
and 0.8 B in total, 0.35 B cannot be the true value. The released model with 90 classes has 4.475 M
parameters with batch normalisation folded (OpenVINO's model zoo); this module has 4,475,167.
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

# Side of an anchor / side of the image, on the first and the last map, and width / height.
ANCHOR_SCALES = (0.2, 0.95)
ASPECT_RATIOS = (1.0, 2.0, 0.5, 3.0, 1 / 3)
# Offsets of centres and logarithms of sizes are multiplied by these (Faster R-CNN's box code).
CENTRE_SCALE, SIZE_SCALE = 10.0, 5.0
MATCHED = 0.5  # from this intersection over union on, an anchor is matched to a box


class ExtraMap(nn.Module):
    """A map of half the resolution: `reduce` to half the features, then a 3x3 layer of stride 2.

    Attributes:
      conv, norm: module constructors bound by the network.
      features: of the result.
      separable: `depthwise` and 1x1 `project` instead of the dense `expand`.
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
    """Predictions from one map: `predict`, a 3x3 convolution with bias, or `depthwise` and 1x1.

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

    The first two maps are the backbone's at its last two strides (`last_at_strides` with
    `expanded`: for Table 2 these are the expansion of the first block of stage 5, 576 channels at
    stride 16, and the head at stride 32). The maps `extra_{i}` follow; each has half the resolution
    of the map before it. Every map has submodules `boxes_{i}` and `classes_{i}`.

    Attributes:
      backbone: with `num_classes=0`. Its modules have the names, shapes and meaning that they have
        in the classifier, so a classifier's parameters fit.
      num_classes: without the background.
      extra_features: channels of the additional maps.
      separable: depthwise and 1x1 convolutions after the backbone (SSDLite); False uses dense 3x3
        convolutions (SSD).

    `__call__` maps images [B, H, W, C], already normalised, to class logits [B, N, num_classes + 1]
    float32, where class 0 is the background, and boxes [B, N, 4] float32 in the code of `encode`.
    Both are in the order of `anchors`. In training `batch_stats` must be mutable.
    """

    backbone: MobileNetV2
    num_classes: int = 80
    extra_features: tuple[int, ...] = (512, 256, 256, 128)
    separable: bool = True

    def map_strides(self) -> tuple[int, ...]:
        """Image pixels for one pixel of each map, from the highest resolution to the lowest.

        Raises:
          ValueError: the backbone has only one resolution.
        """
        strides = list(last_at_strides(self.backbone.plan, expanded=True))[-2:]
        if len(strides) < 2:
            raise ValueError(
                f"The backbone has maps at stride {strides[0]} only, and SSD reads maps at two "
                "strides; give a block a stride of 2."
            )
        extra = (strides[-1] * 2 ** (i + 1) for i in range(len(self.extra_features)))
        return (*strides, *extra)

    def anchors(self, image_size: tuple[int, int]) -> np.ndarray:
        """Anchors [N, 4] float32 of images of (H, W) pixels; see `anchor_boxes`."""
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
        _, endpoints = self.backbone(images, train, endpoints=True)
        names = last_at_strides(self.backbone.plan, expanded=True)
        maps = [endpoints[names[stride]] for stride in self.map_strides()[:2]]
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

    Scales increase linearly from map to map. Each map has anchors of its scale in every aspect
    ratio, and one square anchor of the geometric mean of its scale and the next map's scale. The
    first map, of the highest resolution, has only three anchors, as in the released model.

    Args:
      maps: number of maps, at least 2.

    Returns:
      For each map [n, 2] float64, fractions of the image's shorter side.
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
      sizes: rows and columns of each map, from the highest resolution to the lowest; at least 2.
      image_size: (H, W) of the image in any unit; square anchors are square in the image.

    Returns:
      [N, 4] float32: centre y and x, height and width, as fractions of the image. The order is by
      map, then by row, column and shape.
    """
    relative = min(image_size) / np.array(image_size)
    boxes = []
    for (rows, columns), shapes in zip(sizes, anchor_shapes(len(sizes)), strict=True):
        y, x = (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns
        centres = np.stack(np.meshgrid(y, x, indexing="ij"), -1)[:, :, None]
        centres = np.broadcast_to(centres, (rows, columns, len(shapes), 2))
        spread = np.broadcast_to(shapes * relative, centres.shape)
        boxes.append(np.concatenate([centres, spread], -1).reshape(-1, 4))
    return np.concatenate(boxes).astype(np.float32)


def encode(boxes: Float[Array, "*n 4"], anchors: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Boxes relative to anchors: the numbers that the network predicts.

    Args:
      boxes: (top, left, bottom, right) as fractions of the image.
      anchors: (centre y, centre x, height, width), from `anchor_boxes`.

    Returns:
      Offsets of the centre in anchor sizes, times 10, and logarithms of height and width relative
      to the anchor's, times 5.
    """
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    size = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 1e-6)  # an empty box has no logarithm
    offset = CENTRE_SCALE * (centre - anchors[..., :2]) / anchors[..., 2:]
    return jnp.concatenate([offset, SIZE_SCALE * jnp.log(size / anchors[..., 2:])], axis=-1)


def decode(code: Float[Array, "*n 4"], anchors: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """The inverse of `encode`: boxes (top, left, bottom, right) as fractions of the image."""
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
    """What the anchors of one image should predict.

    Attributes:
      classes: [N] int32, 0 for the background.
      boxes: [N, 4] float32 in the code of `encode`; 0 for the background.
    """

    classes: Int[Array, " N"]
    boxes: Float[Array, "N 4"]


def match(
    anchors: Float[Array, "N 4"], boxes: Float[Array, "M 4"], labels: Int[Array, " M"]
) -> Targets:
    """Assigns the boxes of one image to anchors (arXiv 1512.02325, section 2.2).

    An anchor is matched to the box that it overlaps most, if the overlap is at least `MATCHED`. In
    addition, every box is matched to its best anchor, however small the overlap. For a batch, apply
    `jax.vmap` over boxes and labels.

    Args:
      anchors: from `anchor_boxes`.
      boxes: (top, left, bottom, right) as fractions of the image; rows of padding are not read.
      labels: classes from 1; 0 marks padding.
    """
    half = anchors[:, 2:] / 2
    corners = jnp.concatenate([anchors[:, :2] - half, anchors[:, :2] + half], axis=-1)
    real = (labels > 0)[:, None]
    overlap = jnp.where(real, overlaps(boxes, corners), -1.0)
    best_anchor = jnp.argmax(overlap, axis=1)
    # If several boxes have the same best anchor, the box with the largest overlap gets it.
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

    The loss of boxes counts matched anchors. The loss of classes counts matched anchors and, in
    each image, the background anchors with the largest cross entropy (hard negative mining).

    Args:
      class_logits, boxes: from `SSDLite`.
      targets: from `match` for every image: classes [B, N], boxes [B, N, 4].
      negatives_per_positive: background anchors per matched anchor, in each image.

    Returns:
      A scalar: the sum of both losses over the batch / the number of matched anchors; 0 if there
      are none.
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
