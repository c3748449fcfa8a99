"""Batch normalisation with its activation, statistics and gradient in few passes over memory."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def _act(z, activation):
    if activation == "identity":
        return z
    if activation == "relu":
        return jnp.maximum(z, 0)
    if activation == "relu6":
        return jnp.clip(z, 0, 6)
    if activation == "hard_swish":
        return z * jnp.clip(z + 3, 0, 6) * (1 / 6)
    raise ValueError(
        f"activation must be 'identity', 'relu', 'relu6' or 'hard_swish', got {activation!r}"
    )


def _act_grad(g, z, activation):
    if activation == "identity":
        return g
    if activation == "relu":
        return jnp.where(z > 0, g, 0)
    if activation == "relu6":
        return jnp.where((z > 0) & (z < 6), g, 0)
    inner = jnp.where((z > -3) & (z < 3), (2 * z + 3) * (1 / 6), jnp.where(z >= 3, 1, 0))
    return g * inner.astype(g.dtype)


def _sum(x):
    """[b, h, w, c] -> [c]."""
    return x.sum(-2).sum(tuple(range(x.ndim - 2)))


def _pmean(x, axis_name, groups):
    return x if axis_name is None else lax.pmean(x, axis_name, axis_index_groups=groups)


def _statistics(x, axis_name, groups):
    xf = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    count = x.size // x.shape[-1]
    shift = lax.stop_gradient(xf[:, x.shape[1] // 2].mean((0, 1)))
    d = xf - shift
    m1 = _sum(d) / count
    m2 = _sum(d * d) / count
    local = shift + m1
    mean = _pmean(local, axis_name, groups)
    var = _pmean(jnp.maximum(m2 - m1 * m1, 0) + (local - mean) ** 2, axis_name, groups)
    return mean, var


def _apply(x, mean, var, scale, bias, epsilon, activation, dtype):
    mul = lax.rsqrt(var + epsilon) * scale
    z = (x.astype(mul.dtype) - mean) * mul + bias
    return _act(z, activation).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6, 7))
def _train(x, scale, bias, epsilon, activation, dtype, axis_name, groups):
    mean, var = _statistics(x, axis_name, groups)
    return _apply(x, mean, var, scale, bias, epsilon, activation, dtype), mean, var


def _train_fwd(x, scale, bias, epsilon, activation, dtype, axis_name, groups):
    mean, var = _statistics(x, axis_name, groups)
    y = _apply(x, mean, var, scale, bias, epsilon, activation, dtype)
    return (y, mean, var), (x, mean, var, scale, bias)


def _train_bwd(epsilon, activation, dtype, axis_name, groups, residuals, cotangents):
    x, mean, var, scale, bias = residuals
    g, gmean, gvar = cotangents
    inv = lax.rsqrt(var + epsilon)
    count = x.size // x.shape[-1]
    d = x.astype(inv.dtype) - mean
    g = _act_grad(g.astype(inv.dtype), d * (inv * scale) + bias, activation)
    dbias, gd = _sum(g), _sum(g * d)
    dscale = gd * inv
    sums = jnp.stack([dbias, gd, gmean, gvar])
    mbias, mgd, gmean, gvar = _pmean(sums, axis_name, groups)
    a = inv * scale
    dx = (
        a * g
        + (gmean - a * mbias) / count
        + d * ((2 * gvar - a * inv * inv * mgd) / count)
    )
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


_train.defvjp(_train_fwd, _train_bwd)


class BatchNorm(nn.Module):
    momentum: float = 0.9
    epsilon: float = 1e-3
    axis_name: str | None = None
    axis_index_groups: Any = None
    dtype: Any = jnp.float32
    activation: str = "identity"
    scale_init: Any = nn.initializers.ones
    bias_init: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, x, use_running_average: bool):
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(shape, jnp.float32))
        var = self.variable("batch_stats", "var", lambda: jnp.ones(shape, jnp.float32))
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", self.bias_init, shape, jnp.float32)
        if use_running_average:
            return _apply(
                x, mean.value, var.value, scale, bias, self.epsilon, self.activation, self.dtype
            )
        axis_name = None if self.is_initializing() else self.axis_name
        groups = self.axis_index_groups
        if groups is not None:
            groups = tuple(tuple(g) for g in groups)
        y, m, v = _train(
            x, scale, bias, self.epsilon, self.activation, self.dtype, axis_name, groups
        )
        if not self.is_initializing():
            m, v = lax.stop_gradient((m, v))
            mean.value = self.momentum * mean.value + (1 - self.momentum) * m
            var.value = self.momentum * var.value + (1 - self.momentum) * v
        return y
