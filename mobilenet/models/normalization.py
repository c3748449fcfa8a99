"""Batch normalisation with its activation: few passes over memory, with a hand-derived gradient.

A MobileNetV2 step is limited by memory traffic, and normalisation causes most of it. So this module
does the following:

- It computes both sums of the statistics from `x` itself. For a sum of `x - shift`, XLA would first
  write `x - shift` to memory, because reductions are library calls on CPU that fuse nothing.
- It includes the activation. The activation's derivative is computed from the normalised value,
  which is computed again, so only `x` is kept for the backward pass.
- It computes the gradient of `x` in two passes: one for sums, and one affine pass
  `a * g + b * x + c` with three numbers per channel.
- After a 1x1 convolution that expands, the statistics and the gradient need no pass over its output
  at all: they follow from moments of the narrow input (`Product`).

Variables, names and shapes are those of `flax.linen.BatchNorm`, so checkpoints fit both.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mobilenet.models.depthwise import resolve_form
from mobilenet.models.loops import images_per_chunk, rows_per_sum, take_images, widen

ACTIVATIONS = ("identity", "relu", "relu6", "hard_swish")

# From this size on, a gradient's sums are computed in a loop. Smaller tensors fit into the caches.
LOOP_BYTES = 4_000_000


class Rule(NamedTuple):
    """The constant settings of a layer; hashable, so that it can be a static argument."""

    epsilon: float
    activation: str
    dtype: Any
    axis_name: str | None
    axis_index_groups: tuple[tuple[int, ...], ...] | None


def activate(z: Float[Array, "*shape"], activation: str) -> Float[Array, "*shape"]:
    """Applies one of `ACTIVATIONS` element by element.

    Args:
      z: any shape and floating dtype.
      activation: 'identity', 'relu', 'relu6' or 'hard_swish' (`z * relu6(z + 3) / 6`).

    Returns:
      Same shape and dtype as `z`.

    Raises:
      ValueError: the activation is unknown.
    """
    if activation == "identity":
        return z
    if activation == "relu":
        return jnp.maximum(z, 0)
    if activation == "relu6":
        # A clip: exporters recognise it and map it to one fused operation.
        return jnp.clip(z, 0, 6)
    if activation == "hard_swish":
        return z * jnp.clip(z + 3, 0, 6) / 6
    raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")


def _activation_gradient(g: Array, z: Array, activation: str) -> Array:
    """`g` times the derivative of the activation at `z`; 0 at the kinks, as in `jax.nn.relu6`."""
    if activation == "identity":
        return g
    if activation == "relu":
        return jnp.where(z > 0, g, 0)
    if activation == "relu6":
        return jnp.where((z > 0) & (z < 6), g, 0)
    return jnp.where(z >= 3, g, jnp.where(z > -3, g * (2 * z + 3) / 6, 0))


def _sum(x: Array) -> Array:
    return x.sum(tuple(range(x.ndim - 1)))


def _check_count(x: Array, rule: Rule) -> None:
    """Refuses statistics of one value per channel, as PyTorch does: outputs would all be `bias`."""
    count = x.size // x.shape[-1]
    if rule.axis_index_groups is not None:
        count *= len(rule.axis_index_groups[0])
    elif rule.axis_name is not None:
        count *= lax.axis_size(rule.axis_name)
    if count == 1:
        raise ValueError(
            f"Batch statistics of {x.shape} have one value per channel; training needs at least 2: "
            "more images, or larger ones."
        )


def _pmean(x: Array, rule: Rule) -> Array:
    if rule.axis_name is None:
        return x
    return lax.pmean(x, rule.axis_name, axis_index_groups=rule.axis_index_groups)


def _statistics(x: Array, rule: Rule) -> tuple[Array, Array]:
    """Mean and biased variance per channel, over every device of the axis, at least float32.

    The local variance is the mean square minus the squared mean, as in Flax. Its relative error is
    the rounding error of the mean square times 1 + mean^2 / var. A test bounds it by 10^-2 at a
    mean of 50 standard deviations (measured: 10^-3). A branch with a second pass around the mean
    would lengthen the compilation of a step by more than half.
    """
    x = widen(x)
    count = x.size // x.shape[-1]
    mean = _sum(x) / count
    return _overall(mean, jnp.maximum(_sum(x * x) / count - mean * mean, 0), rule)


def _overall(mean: Array, var: Array, rule: Rule) -> tuple[Array, Array]:
    """Statistics over the devices of the axis, from the statistics of each device.

    The variance is the mean of the variances plus the variance of the means. Averaged mean squares
    would cause the cancellation that the local variance avoids.
    """
    if rule.axis_name is None:
        return mean, var
    overall = _pmean(mean, rule)
    return overall, _pmean(var + (mean - overall) ** 2, rule)


def _normalise(
    x: Array, mean: Array, var: Array, scale: Array, bias: Array, rule: Rule
) -> Float[Array, "*b c"]:
    multiplier = lax.rsqrt(var + rule.epsilon) * scale
    z = (widen(x) - mean) * multiplier + bias
    return activate(z, rule.activation).astype(rule.dtype)


def _forward(
    x: Array, scale: Array, bias: Array, rule: Rule
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    mean, var = _statistics(x, rule)
    y = _normalise(x, mean, var, scale, bias, rule)
    return (y, mean, var), (x, mean, var, scale, bias)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _train(x: Array, scale: Array, bias: Array, rule: Rule) -> tuple[Array, Array, Array]:
    return _forward(x, scale, bias, rule)[0]


def _derive(g: Array, x: Array, mean: Array, multiplier: Array, bias: Array, rule: Rule) -> Array:
    """`g` times the activation's derivative at the normalised `x`, which is computed again."""
    z = (widen(x) - mean) * multiplier + bias
    return _activation_gradient(widen(g), z, rule.activation)


def _through_statistics(
    sums: tuple[Array, ...], multiplier: Array, r: Array, count: int, rule: Rule
) -> tuple[Array, Array]:
    """The factor of `x - mean` in the gradient of `x`, and the constant term; see `_backward`.

    `sums` are those of g and g d, and the cotangents of the mean and of the variance. The `x` of
    each device changed the statistics of all devices, so the sums of all devices are averaged.
    """
    gsum, gdsum, gmean, gvar = _pmean(jnp.stack(sums), rule) / count
    return 2 * gvar - multiplier * r * r * gdsum, gmean - multiplier * gsum


def _gradient_sums(
    g: Array, x: Array, mean: Array, multiplier: Array, bias: Array, rule: Rule
) -> tuple[Array, Array]:
    """`sum g'` and `sum g' x` per channel, where g' is `g` times the activation's derivative.

    Images that exceed the caches of a CPU are summed in one loop, which reads `g` and `x` once and
    does not store g' (see `loops`). XLA would write g' and read it twice.
    """
    derive = partial(_derive, mean=mean, multiplier=multiplier, bias=bias, rule=rule)
    small = x.ndim != 4 or x.nbytes < LOOP_BYTES or resolve_form("auto") != "shifted"
    if small or rule.activation == "identity":
        g = derive(g, x)
        return _sum(g), _sum(g * widen(x))
    count, run = images_per_chunk(x), rows_per_sum(x.shape[1], 2)

    def add_chunk(index: Array, sums: Array) -> Array:
        pixels, gradient = take_images(x, index, count), take_images(g, index, count)
        for row in range(run):
            part = widen(pixels[:, row::run])
            derived = derive(gradient[:, row::run], part)
            sums = sums + jnp.stack([derived, derived * part], axis=2)
        return sums

    zero = jnp.zeros((count, x.shape[1] // run, 2, *x.shape[2:]), widen(mean).dtype)
    sums = lax.fori_loop(0, x.shape[0] // count, add_chunk, zero).sum((0, 1, 3))
    return sums[0], sums[1]


def _backward(
    rule: Rule,
    residuals: tuple[Array, ...],
    cotangents: tuple[Array, Array, Array],
    batch: Array | float = 1.0,
) -> tuple[Array, Array, Array]:
    """Gradient of (y, mean, var) with respect to (x, scale, bias).

    With `d = x - mean`, `r = rsqrt(var + epsilon)` and the activation's derivative included in `g`,

        dbias = sum g,   dscale = r * sum g d,
        dx = scale r g + (gmean - scale r E[g]) / n + d (2 gvar - scale r^3 E[g d]) / n

    where E and the cotangents of the statistics are averaged over the devices of the axis. The
    gradients of scale and bias stay local sums, as with automatic differentiation; the training
    step averages them. `sum g d` is computed as `sum g x - mean sum g`, which loses
    log10(|mean| / std) digits and avoids writing `d`.

    `batch` is 0 where the statistics did not come from `x`: then dx is its first term alone.
    """
    x, mean, var, scale, bias = residuals
    g, gmean, gvar = cotangents
    r = lax.rsqrt(var + rule.epsilon)
    multiplier = r * scale
    gsum, gxsum = _gradient_sums(g, x, mean, multiplier, bias, rule)
    g = _derive(g, x, mean, multiplier, bias, rule)
    gdsum = gxsum - mean * gsum
    count = x.size // x.shape[-1]
    linear, constant = _through_statistics((gsum, gdsum, gmean, gvar), multiplier, r, count, rule)
    dx = multiplier * g + batch * (linear * (widen(x) - mean) + constant)
    return dx.astype(x.dtype), (gdsum * r).astype(scale.dtype), gsum.astype(bias.dtype)


_train.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _train_until(
    x: Array, scale: Array, bias: Array, mean: Array, var: Array, fixed: Array, rule: Rule
) -> tuple[Array, Array, Array]:
    """As `_train`, but with the given statistics instead of those of `x` where `fixed` is true."""
    return _forward_until(x, scale, bias, mean, var, fixed, rule)[0]


def _forward_until(
    x: Array, scale: Array, bias: Array, mean: Array, var: Array, fixed: Array, rule: Rule
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    mean, var = lax.cond(fixed, lambda: (mean, var), lambda: _statistics(x, rule))
    y = _normalise(x, mean, var, scale, bias, rule)
    return (y, mean, var), (x, mean, var, scale, bias, fixed)


def _backward_until(
    rule: Rule, residuals: tuple[Array, ...], cotangents: tuple[Array, Array, Array]
) -> tuple[Array | None, ...]:
    *others, fixed = residuals
    batch = 1.0 - fixed.astype(jnp.float32)
    return *_backward(rule, tuple(others), cotangents, batch), None, None, None


_train_until.defvjp(_forward_until, _backward_until)


class Product(NamedTuple):
    """A 1x1 convolution that the normalisation after it computes.

    Attributes:
      x: images [..., c].
      kernel: [1, 1, c, d] of the dtype of `x`.
    """

    x: Array
    kernel: Array


def _matmul(x: Array, kernel: Array) -> Array:
    accumulator = jnp.promote_types(x.dtype, jnp.float32)
    return lax.dot_general(
        x, kernel, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=accumulator
    )


def _correlate(x: Array, y: Array) -> Array:
    """`sum x_i y_j` over all axes but the last: [c, d], at least float32.

    Over one flattened axis XLA:CPU would call another library, whose product is faster on its own
    but slower within a training step.
    """
    axes = tuple(range(x.ndim - 1))
    accumulator = jnp.promote_types(x.dtype, jnp.float32)
    return lax.dot_general(x, y, ((axes, axes), ((), ())), preferred_element_type=accumulator)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _train_product(
    x: Array, kernel: Array, scale: Array, bias: Array, rule: Rule
) -> tuple[Array, Array, Array]:
    """As `_train(x @ kernel, ...)`, for `kernel` [c, d] of more outputs than inputs."""
    return _forward_product(x, kernel, scale, bias, rule)[0]


def _forward_product(
    x: Array, kernel: Array, scale: Array, bias: Array, rule: Rule
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    """Statistics of `x @ kernel` from those of `x`: `E[x] kernel` and `diag(kernel' cov kernel)`.

    The covariance is the mean product minus the product of the means, with the rounding error that
    `_statistics` describes. Here the error is relative to the mean squares of the inputs, each
    weighted by its kernel, even where the means of several inputs cancel in the output.
    """
    count = x.size // x.shape[-1]
    wide = widen(kernel)
    center = _sum(widen(x)) / count
    covariance = _correlate(x, x) / count - jnp.outer(center, center)
    mean = center @ wide
    var = jnp.maximum((wide * (covariance @ wide)).sum(0), 0)
    mean, var = _overall(mean, var, rule)
    product = _matmul(x, kernel).astype(x.dtype)
    y = _normalise(product, mean, var, scale, bias, rule)
    residuals = (x, kernel, product, center, covariance, mean, var, scale, bias)
    return (y, mean, var), residuals


def _backward_product(
    rule: Rule, residuals: tuple[Array, ...], cotangents: tuple[Array, Array, Array]
) -> tuple[Array, ...]:
    """Gradient of (y, mean, var) with respect to (x, kernel, scale, bias).

    `_backward` gives the gradient of the product: `a g + b (product - mean) + c`, with one a, b and
    c per channel. It is linear, so it is multiplied with the kernel and with `x` term by term:

        dx = g (a kernel)' + x (kernel (b kernel)') + (c - b mean) kernel'
        dkernel = a x'g + b x'(product - mean) + c x'1,    x' product = (x'x) kernel

    and `sum g product = diag(kernel' x'g)`. Only `g` is as large as the product.
    """
    x, kernel, product, center, covariance, mean, var, scale, bias = residuals
    g, gmean, gvar = cotangents
    wide, count = widen(kernel), x.size // x.shape[-1]
    r = lax.rsqrt(var + rule.epsilon)
    multiplier = r * scale
    g = _derive(g, product, mean, multiplier, bias, rule).astype(wide.dtype)
    x = widen(x)
    correlation = _correlate(x, g)
    gsum = _sum(g)
    gdsum = (wide * correlation).sum(0) - mean * gsum
    linear, constant = _through_statistics((gsum, gdsum, gmean, gvar), multiplier, r, count, rule)
    # `mean` is the mean over all devices; the local products are centred by the local mean.
    centred = covariance @ wide + jnp.outer(center, center @ wide - mean)
    dkernel = (
        multiplier * correlation + count * linear * centred + count * jnp.outer(center, constant)
    )
    dx = (
        _matmul(g, (multiplier * wide).T)
        + _matmul(x, wide @ (linear * wide).T)
        + wide @ (constant - linear * mean)
    )
    return (
        dx.astype(residuals[0].dtype),
        dkernel.astype(kernel.dtype),
        (gdsum * r).astype(scale.dtype),
        gsum.astype(bias.dtype),
    )


_train_product.defvjp(_forward_product, _backward_product)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, followed by an activation.

    Parameters `scale` and `bias` and statistics `mean` and `var` (collection `batch_stats`) are
    float32 [c], as in `flax.linen.BatchNorm`. The running variance averages the biased variance.

    Attributes:
      momentum: weight of the old running average (Flax's meaning; PyTorch's is one minus it).
      epsilon: added to the variance.
      axis_name: axis over whose devices the statistics are averaged; None keeps them local. It is
        ignored while parameters are initialised, so that `init` runs outside the axis.
      axis_index_groups: groups of indices of that axis; each group has its own statistics.
      dtype: of the output. The arithmetic is at least float32 in any case.
      activation: one of `ACTIVATIONS`.
      scale_init: initialiser of `scale`.
      bias_init: initialiser of `bias`.
    """

    momentum: float = 0.9
    epsilon: float = 1e-3
    axis_name: str | None = None
    axis_index_groups: Any = None
    dtype: Any = jnp.float32
    activation: str = "identity"
    scale_init: Callable[..., Any] = nn.initializers.ones
    bias_init: Callable[..., Any] = nn.initializers.zeros

    @nn.compact
    def __call__(
        self, x: Float[Array, "*b c"] | Product, use_running_average: bool | Array
    ) -> Float[Array, "*b c"]:
        """Normalises `x`. Updates the running statistics unless it normalises by them.

        Args:
          x: [..., c] of any floating dtype, or in training a `Product`: then this method computes
            the convolution too, which is faster if the kernel has more outputs than inputs.
          use_running_average: True normalises by the stored statistics (evaluation), False by those
            of `x` (training; `batch_stats` must then be mutable). A traced boolean is decided while
            the program runs, for training that stops updating its statistics at some step.

        Returns:
          Same shape as `x`, in `self.dtype`.

        Raises:
          ValueError: the activation is unknown, `x` is a product but no statistics are computed, or
            the statistics would have one value per channel.
        """
        shape = (x.kernel if isinstance(x, Product) else x).shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", self.bias_init, shape, jnp.float32)
        groups = self.axis_index_groups
        rule = Rule(
            self.epsilon,
            self.activation,
            jnp.dtype(self.dtype),
            None if self.is_initializing() else self.axis_name,
            None if groups is None else tuple(tuple(group) for group in groups),
        )

        if use_running_average is not True and not self.is_initializing():
            _check_count(x.x if isinstance(x, Product) else x, rule)
        if isinstance(x, Product):
            if use_running_average is not False:
                raise ValueError("A Product is for training: use_running_average must be False.")
            kernel = x.kernel.reshape(x.kernel.shape[2:])
            parts = _train_product(x.x, kernel, scale, bias, rule)
            y, new_mean, new_var = cast(tuple[Array, Array, Array], parts)
            keep = self.momentum
        elif isinstance(use_running_average, jax.Array):
            parts = _train_until(x, scale, bias, mean.value, var.value, use_running_average, rule)
            y, new_mean, new_var = cast(tuple[Array, Array, Array], parts)
            keep = jnp.where(use_running_average, 1.0, self.momentum)
        elif use_running_average:
            return _normalise(x, mean.value, var.value, scale, bias, rule)
        else:
            y, new_mean, new_var = cast(tuple[Array, Array, Array], _train(x, scale, bias, rule))
            keep = self.momentum
        if not self.is_initializing():
            mean.value = keep * mean.value + (1 - keep) * lax.stop_gradient(new_mean)
            var.value = keep * var.value + (1 - keep) * lax.stop_gradient(new_var)
        return y
