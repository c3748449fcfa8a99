"""Building blocks shared by the networks: convolution, ConvBNAct, SqueezeExcite, Dropout."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mobilenet.models.depthwise import depthwise_conv, resolve_form
from mobilenet.models.initializers import INITIALIZERS, Initializer
from mobilenet.models.normalization import BatchNorm, Product
from mobilenet.models.pointwise import conv

ModuleDef = Callable[..., Any]
Padding = Literal["SAME", "SYMMETRIC"]

GATES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
}


def make_divisible(value: float, divisor: int = 8) -> int:
    """Rounds a channel count to a multiple of `divisor`, never below 90 % of `value`.

    The rule of the released MobileNetV2 code (research/slim/nets/mobilenet/conv_blocks.py); the
    smallest result is `divisor`. A divisor of 1 rounds to the nearest integer.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class Conv(nn.Module):
    """Convolution without bias by default; dense, or depthwise with one filter per channel.

    The `kernel` parameter has the shape that `flax.linen.Conv` gives it, float32: [k, k, C_in,
    features], or [k, k, 1, C_in] when `depthwise`. The shape does not depend on `form`, so a
    checkpoint fits every form.

    Attributes:
      features: output channels; equals the input channels when `depthwise`.
      kernel_size: side of the square kernel.
      dilation: step between the taps of the window (atrous convolution), at least 1.
      padding: "SAME" pads as TensorFlow does (asymmetric at stride 2), "SYMMETRIC" as PyTorch does.
      form: "auto", "grouped" or "shifted", see `mobilenet.models.depthwise.resolve_form`.
      dtype: of the computation and the result.
    """

    features: int
    kernel_size: int = 1
    strides: int = 1
    dilation: int = 1
    depthwise: bool = False
    use_bias: bool = False
    padding: Padding = "SAME"
    form: str = "auto"
    dtype: Any = jnp.float32
    kernel_init: Initializer = INITIALIZERS["he_fan_out"]

    def prepare(self, kernel: Array) -> Array:
        """Turns the parameter into the kernel that is used; subclasses round or mask it here."""
        return kernel

    def widens(self, channels: int) -> bool:
        """Whether the batch normalisation after this layer should compute it.

        That replaces passes over the output, of `features` channels, by products with a matrix
        [channels, channels] of the input. The products cost more than they save where the input is
        wide: on two cores of an AMD EPYC the replacement was faster at 64 -> 384 channels, equal at
        96 -> 576 and slower at 64 -> 256.
        """
        return (
            (self.kernel_size, self.strides, self.depthwise, self.use_bias) == (1, 1, False, False)
            and channels**2 <= 12 * self.features
            and resolve_form(self.form) == "shifted"
        )

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, defer: bool = False) -> Any:
        """Convolves images [B, H, W, C] to [B, h, w, F]; with `defer` a `Product` is returned."""
        in_features = 1 if self.depthwise else x.shape[-1]
        if self.depthwise and self.features != x.shape[-1]:
            raise ValueError(
                f"A depthwise convolution keeps its {x.shape[-1]} channels, got features="
                f"{self.features}; set features to {x.shape[-1]}."
            )
        shape = (self.kernel_size, self.kernel_size, in_features, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        kernel = self.prepare(kernel).astype(self.dtype)
        if defer:
            return Product(x.astype(self.dtype), kernel)
        apply = depthwise_conv if self.depthwise else conv
        y = apply(
            x.astype(self.dtype),
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            form=self.form,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


def convolve_and_normalise(
    conv: Any, norm: Any, x: Float[Array, "B H W C"], use_running_average: bool | Array
) -> Float[Array, "B h w F"]:
    """`norm(conv(x))`; in training one operation, if both are this module's and it is faster."""
    own = isinstance(conv, Conv) and isinstance(norm, BatchNorm)
    if own and use_running_average is False and conv.widens(x.shape[-1]):
        return norm(conv(x, defer=True), use_running_average=False)
    return norm(conv(x), use_running_average=use_running_average)


class ConvBNAct(nn.Module):
    """Convolution, batch normalisation, activation: submodules `conv` and `bn`.

    Attributes:
      conv, norm: module constructors. A caller binds form, dtype, padding and momentum once, or
        passes quantised versions instead.
      activation: one of `mobilenet.models.normalization.ACTIVATIONS`; `norm` applies it.
    """

    conv: ModuleDef
    norm: ModuleDef
    features: int
    kernel_size: int = 1
    strides: int = 1
    dilation: int = 1
    depthwise: bool = False
    activation: str = "relu6"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w F"]:
        # Replacements of `Conv` need the argument only in networks that use dilation.
        dilation = {"dilation": self.dilation} if self.dilation > 1 else {}
        conv = self.conv(
            features=self.features,
            kernel_size=self.kernel_size,
            strides=self.strides,
            depthwise=self.depthwise,
            name="conv",
            **dilation,
        )
        norm = self.norm(activation=self.activation, name="bn")
        return convolve_and_normalise(conv, norm, x, use_running_average=not train)


class Exact(nn.Module):
    """The identity (x, train) -> x, without variables: the default at a quantisation point."""

    def __call__(self, x: Array, train: bool) -> Array:
        del train
        return x


class SqueezeExcite(nn.Module):
    """Channel gating from the spatial mean (Hu et al. 2018, arXiv 1709.01507, section 3).

    Two dense layers with biases, `reduce` and `expand`, with ReLU between them, then the gate.

    Attributes:
      squeeze_features: width of the layer between the two; the caller derives it from the ratio.
      gate: a key of `GATES`.
      dense, point: constructors for the two dense layers, and for the modules that each
        intermediate tensor passes through (quantisers, for example).
    """

    squeeze_features: int
    gate: str = "sigmoid"
    dtype: Any = jnp.float32
    dense: ModuleDef = nn.Dense
    point: ModuleDef = Exact

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        # The mean is taken in float32: bfloat16 is not precise enough for means over large maps.
        pooled = jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(self.dtype)
        pooled = self.point(name="pooled")(pooled, train)
        dense = functools.partial(
            self.dense, dtype=self.dtype, kernel_init=INITIALIZERS["lecun_fan_in"]
        )
        hidden = jax.nn.relu(dense(self.squeeze_features, name="reduce")(pooled))
        hidden = self.point(name="hidden")(hidden, train)
        logits = self.point(name="scores")(dense(x.shape[-1], name="expand")(hidden), train)
        gate = self.point(name="gate")(GATES[self.gate](logits), train)
        return self.point(name="product")(x * gate[:, None, None, :], train)


class Dropout(nn.Module):
    """Dropout with one mask per example: the mask does not depend on how a batch is divided.

    Attributes:
      rate: probability of a zero, in [0, 1).

    `__call__` takes x [B, F] and `keys`, one PRNG key per example. Without keys it splits the
    `dropout` stream of `apply(..., rngs={"dropout": key})`.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "B F"], train: bool, keys: Key[Array, " B"] | None = None
    ) -> Float[Array, "B F"]:
        if not train or self.rate == 0.0:
            return x
        if keys is None:
            keys = jax.random.split(self.make_rng("dropout"), x.shape[0])
        keep = 1.0 - self.rate
        mask = jax.vmap(lambda key: jax.random.bernoulli(key, keep, x.shape[1:]))(keys)
        return jnp.where(mask, x / keep, 0.0).astype(x.dtype)
