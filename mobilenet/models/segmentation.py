"""DeepLabv3 on MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, section 6.3) and its loss.

The head is that of Chen et al. 2017 (arXiv 1706.05587, section 3.3), on the last bottleneck's
output rather than on the 1280-channel map, with and without atrous spatial pyramid pooling (ASPP).

Table 7 at 513 x 513 pixels, 21 classes, output stride 16 (first number), and the values of this
module (second number):

                 parameters              MACs
    no ASPP      2.11 M   2,113,557      2.75 B   2,740,709,056
    ASPP         4.52 M   4,523,541      5.8 B    5,363,508,928

Parameters agree. The paper's MACs are those of TensorFlow's graph, in which an atrous convolution
pads the map until the rate divides its sides: the 33 x 33 map of the ASPP counts as 36 x 36.
Counted in this way the network has 2.742 B and 5.823 B. At output stride 8, summed over six scales
and their mirror images, it has 152.5 B and 387.5 B, where Table 7 prints 152.6 and 387. The tests
check this. The remaining difference, 0.3 % of the first value and less of the others, is
unexplained.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from mobilenet.models.initializers import INITIALIZERS
from mobilenet.models.layers import ConvBNAct
from mobilenet.models.mobilenet_v2 import MobileNetV2

# Rates of the ASPP at output stride 16; at 8 they are doubled (arXiv 1706.05587, section 3.3).
ASPP_RATES = (6, 12, 18)
VOID = 255  # label of pixels that do not count, as in PASCAL VOC's masks


class DeepLabV3(nn.Module):
    """MobileNetV2 with a DeepLabv3 head: class logits for every pixel.

    The submodules are `backbone`, `image_pooling` (of the map's mean), `pointwise`, `atrous_{i}`,
    `fuse` (over all of them) and `logits`.

    Attributes:
      backbone: planned with `head_features=0` and an `output_stride`, and with `num_classes=0`. Its
        modules have the names, shapes and meaning that they have in the classifier, so a
        classifier's parameters fit.
      num_classes: with the background, so 21 for PASCAL VOC.
      aspp_rates: of the 3x3 atrous convolutions; `ASPP_RATES` or twice that, () for none.
      features: channels of every branch.

    `__call__` maps images [B, H, W, C], already normalised, to logits [B, H, W, num_classes]
    float32. In training `batch_stats` must be mutable. `image_pooling` then normalises one vector
    per image over the batch, so a batch needs several images.
    """

    backbone: MobileNetV2
    num_classes: int = 21
    aspp_rates: tuple[int, ...] = ()
    features: int = 256

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W C"], train: bool = False
    ) -> Float[Array, "B H W K"]:
        conv, norm = self.backbone.constructors()
        layer = functools.partial(
            ConvBNAct, conv=conv, norm=norm, features=self.features, activation="relu"
        )
        _, endpoints = self.backbone(images, train, endpoints=True)
        x = endpoints[f"stage_{self.backbone.plan.blocks[-1].stage}"]
        pooled = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32)
        pooled = layer(name="image_pooling")(pooled, train)
        branches = [jnp.broadcast_to(pooled, (*x.shape[:3], self.features))]
        branches.append(layer(name="pointwise")(x, train))
        for i, rate in enumerate(self.aspp_rates):
            branch = layer(kernel_size=3, dilation=rate, name=f"atrous_{i}")(x, train)
            branches.append(branch)
        x = layer(name="fuse")(jnp.concatenate(branches, axis=-1), train)
        logits = conv(
            features=self.num_classes,
            use_bias=True,
            # The released 0.01 is for pretrained weights; from scratch, classes would stay equal.
            kernel_init=INITIALIZERS["lecun_fan_in"],
            name="logits",
        )(x)
        return upsample(logits.astype(jnp.float32), images.shape[1:3])


def upsample(x: Float[Array, "B h w C"], size: tuple[int, ...]) -> Float[Array, "B H W C"]:
    """Bilinear interpolation with aligned corners, as the released DeepLab enlarges its logits.

    If a side is a multiple of the output stride plus one pixel (513 = 32 * 16 + 1), every pixel of
    the map lies exactly on the pixel at the centre of its window.

    Args:
      x: [B, h, w, C] of any floating dtype.
      size: rows and columns of the result.
    """

    def weights(inputs: int, outputs: int) -> Float[Array, "outputs inputs"]:
        position = jnp.linspace(0.0, inputs - 1.0, outputs, dtype=x.dtype)
        distance = jnp.abs(position[:, None] - jnp.arange(inputs, dtype=x.dtype))
        return jnp.maximum(1 - distance, 0)

    rows, columns = (weights(*pair) for pair in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("Hh,bhwc,Ww->bHWc", rows, x, columns)


def pixel_cross_entropy(
    logits: Float[Array, "B H W K"], labels: Int[Array, "B H W"]
) -> Float[Array, ""]:
    """Mean softmax cross entropy over the labelled pixels (arXiv 1706.05587, section 4.1).

    Args:
      logits: [B, H, W, K] at the resolution of the labels, so that no label is lost.
      labels: classes 0 to K - 1, or `VOID` for pixels that do not count.

    Returns:
      A scalar; 0 where no pixel is labelled.
    """
    counts = labels != VOID
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counts, labels, 0))
    return jnp.sum(losses * counts) / jnp.maximum(jnp.sum(counts), 1)
