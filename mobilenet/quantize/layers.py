"""Quantised versions of the layers, which replace the float layers of a network.

Parameters and statistics keep the names and shapes of the float layers, so a float checkpoint is
also a checkpoint of the quantised network, without ranges. Ranges, bits and counters are in the
collection `quant`; learned steps are parameters.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax
from jaxtyping import Array, Float

from mobilenet.models.layers import Conv, ConvBNAct, ModuleDef, convolve_and_normalise
from mobilenet.models.network import Network
from mobilenet.quantize import numerics
from mobilenet.quantize.rules import ACTIVATIONS, WEIGHTS, Rule, RuleError, Rules, kind

QUANT = "quant"  # the collection of bits, ranges and counters
# Collections that a caller makes mutable to read intermediate tensors: inputs of quantisers of
# activations, inputs of convolutions and dense layers, and outputs before normalisation and bias.
SEEN, INPUTS, PRODUCTS = "seen", "inputs", "products"
# Weight of the old range in the moving average of training (Jacob et al. 2017, section 3.1: close
# to 1, averaged over thousands of steps; fine-tuning for hundreds of steps needs a shorter one).
MOMENTUM = 0.99
# What normalises in training: the batch, the batch until a counter ends, the running statistics.
STATISTICS = ("batch", "batch_then_running", "running")


def _record(module: nn.Module, collection: str, x: Array) -> None:
    if module.is_mutable_collection(collection):
        module.put_variable(collection, "value", x)


class Quantizer(nn.Module):
    """Rounds one tensor to its grid.

    Variables in `quant`: `bits` [] (0: the tensor is not changed); `low` and `high`, [] or [C],
    unless they follow the weights; and for observed activations `observe` [], the number of
    training passes in which the range still moves (infinity for all). A learned step is the
    parameter `step`, with `offset` in addition (lsq_plus) or `clip` instead (pact). The initial
    values have no meaning: `mobilenet.quantize.calibration` sets them.

    Attributes:
      rules: of the network; the path of the module is its site.
      axis_name: mapped axis over which extremes are taken in training.

    `__call__` takes weights [..., C], which are multiplied by `factor` [C], rounded, and divided by
    `factor` again, or activations [B, ...].
    """

    rules: Rules
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False, *, factor: Array | None = None) -> Array:
        site = "/".join(self.path)
        rule = self.rules.find(site)
        bits = self.variable(QUANT, "bits", jnp.zeros, (), jnp.float32).value
        if kind(site) == ACTIVATIONS:
            y = self._activations(x, bits, rule, train)
        elif factor is None:
            y = self._weights(x, bits, rule)
        else:
            y = self._weights(x * factor, bits, rule) / factor
        return jnp.where(bits > 0, y, x)

    def _range(self, shape: tuple[int, ...]) -> tuple[Any, Any]:
        return (
            self.variable(QUANT, "low", jnp.zeros, shape, jnp.float32),
            self.variable(QUANT, "high", jnp.zeros, shape, jnp.float32),
        )

    def _weights(self, x: Array, bits: Array, rule: Rule) -> Array:
        shape = x.shape[-1:] if rule.per_channel else ()
        if rule.ranges == "lsq":
            step = self.param("step", nn.initializers.ones, shape, jnp.float32)
            return numerics.learned_step(x, step, bits, signed=True, narrow=True)
        ends = (None, None)
        if rule.ranges == "fixed":
            ends = [end.value for end in self._range(shape)]
        return numerics.fake_quantize(x, weight_grid(x, bits, rule, *ends))

    def _activations(self, x: Array, bits: Array, rule: Rule, train: bool) -> Array:
        _record(self, SEEN, x)
        low, high = self._range(())
        if rule.ranges in ("lsq", "lsq_plus"):
            step = self.param("step", nn.initializers.ones, (), jnp.float32)
            offset = None
            if rule.ranges == "lsq_plus":
                offset = self.param("offset", nn.initializers.zeros, (), jnp.float32)
            count = x.size // x.shape[0]
            signed = _signed(low.value, rule)
            return numerics.learned_step(x, step, bits, signed=signed, offset=offset, count=count)
        if rule.ranges == "pact":
            clip = self.param("clip", nn.initializers.ones, (), jnp.float32)
            end, least = _clip_ends(low.value, high.value, clip)
            return numerics.learned_clip(x, end, bits, low=least)
        if rule.ranges == "observe":
            self._observe(x, low, high, train)
        return numerics.fake_quantize(x, activation_grid(bits, rule, low.value, high.value))

    def _observe(self, x: Array, low: Any, high: Any, train: bool) -> None:
        left = self.variable(QUANT, "observe", jnp.zeros, (), jnp.float32)
        if not train or self.is_initializing():
            return

        def look() -> tuple[Array, Array]:
            ends = [lax.stop_gradient(f(x)).astype(jnp.float32) for f in (jnp.min, jnp.max)]
            if self.axis_name is not None:
                ends = [lax.pmin(ends[0], self.axis_name), lax.pmax(ends[1], self.axis_name)]
            return (
                MOMENTUM * low.value + (1 - MOMENTUM) * ends[0],
                MOMENTUM * high.value + (1 - MOMENTUM) * ends[1],
            )

        # A conditional, so that the passes over the tensor stop when the observation ends.
        low.value, high.value = lax.cond(left.value > 0, look, lambda: (low.value, high.value))
        left.value = left.value - 1


def _signed(low: Any, rule: Rule) -> Any:
    """Whether codes are signed: a symmetric grid is unsigned if nothing is below 0."""
    return (low < 0) | (not rule.symmetric)


def activation_grid(
    bits: Any,
    rule: Rule,
    low: Any,
    high: Any,
    *,
    step: Any = None,
    offset: Any = None,
    clip: Any = None,
) -> numerics.Grid:
    """The grid of a tensor of activations, for every kind of `Rule.ranges`.

    Args:
      bits, rule: of the site.
      low, high: its range.
      step, offset, clip: the learned parameters, if the rule has them.
    """
    if rule.ranges in ("lsq", "lsq_plus"):
        return numerics.learned_grid(step, bits, signed=_signed(low, rule), offset=offset)
    if rule.ranges == "pact":
        end, least = _clip_ends(low, high, clip)
        return numerics.clip_grid(end, bits, low=least)
    return numerics.make_grid(low, high, bits, symmetric=rule.symmetric, signed=_signed(low, rule))


def _clip_ends(low: Any, high: Any, clip: Any) -> tuple[Any, Any]:
    """(upper, lower) end of a clipped tensor.

    Clipping at 0 would cut negative values, for example of bottlenecks, so these keep their range.
    """
    return jnp.where(low < 0, high, clip), jnp.minimum(low, 0.0)


def weight_grid(
    kernel: Any, bits: Any, rule: Rule, low: Any = None, high: Any = None, step: Any = None
) -> numerics.Grid:
    """The grid of a kernel [..., C], per tensor or for each channel.

    Args:
      kernel: with normalisation folded in.
      bits, rule: of the site.
      low, high: the fixed range; None follows the kernel's extremes.
      step: the learned step, for `lsq`.
    """
    if rule.ranges == "lsq":
        return numerics.learned_grid(step, bits, signed=True, narrow=True)
    if low is None:
        axes = tuple(range(kernel.ndim - 1)) if rule.per_channel else None
        low, high = (lax.stop_gradient(f(kernel, axis=axes)) for f in (jnp.min, jnp.max))
    return numerics.make_grid(low, high, bits, symmetric=rule.symmetric, narrow=rule.symmetric)


class QuantizedConv(Conv):
    """A convolution whose kernel is rounded after folding in the batch normalisation that follows.

    Attributes:
      quantizer: constructor of a `Quantizer`; the site is `weights`.
      fold: factor of each output channel that normalisation will apply, [features]. It is removed
        again after the rounding, so that the layer computes the same as `Conv`.
    """

    quantizer: ModuleDef = Quantizer
    fold: Any = None

    def prepare(self, kernel: Array) -> Array:
        """Turns the parameter into the kernel that is used."""
        return self.quantizer(name=WEIGHTS)(kernel, factor=self.fold)

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, defer: bool = False) -> Any:
        """As `Conv.__call__`."""
        _record(self, INPUTS, x)
        y = super().__call__(x, defer=defer)
        if not defer:
            _record(self, PRODUCTS, y)
        return y


class QuantizedConvBNAct(ConvBNAct):
    """Convolution, batch normalisation and activation as the one operation of an integer runtime.

    The rounded kernel includes the normalisation (Krishnamoorthi 2018, section 3.2.2) with its
    running statistics, so that training uses the same grids as the deployed model. In training, the
    batch normalises the products of the rounded kernel.

    Attributes besides those of `ConvBNAct`:
      quantizer: constructor of a `Quantizer`; the output's site is `output`.
      statistics: one of STATISTICS. With "batch_then_running" `quant` holds `batch_norm` [], the
        number of training passes in which the batch still normalises; after these the running
        statistics are used and do not change.
    """

    quantizer: ModuleDef = Quantizer
    statistics: str = "batch"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w F"]:
        norm = self.norm(activation=self.activation, name="bn")
        dilation = {"dilation": self.dilation} if self.dilation > 1 else {}
        conv = self.conv(
            features=self.features,
            kernel_size=self.kernel_size,
            strides=self.strides,
            depthwise=self.depthwise,
            fold=None if self.is_initializing() else self._fold(norm.epsilon),
            name="conv",
            **dilation,
        )
        running: Any = not train or self.statistics == "running"
        if self.statistics == "batch_then_running":
            left = self.variable(QUANT, "batch_norm", jnp.zeros, (), jnp.float32)
            if train and not self.is_initializing():
                running = left.value <= 0
                left.value = left.value - 1
        y = convolve_and_normalise(conv, norm, x, use_running_average=running)
        return self.quantizer(name="output")(y, train)

    def _fold(self, epsilon: float) -> Array:
        scale = self.variables["params"]["bn"]["scale"]
        _, fold = fold_factors(scale, self.variables["batch_stats"]["bn"]["var"], epsilon)
        return lax.stop_gradient(fold)


def fold_factors(scale: Any, var: Any, epsilon: float) -> tuple[Array, Array]:
    """The factor of each channel in normalisation, and the factor that is folded into the kernel.

    Both are equal, but the second is 1 where the first is too small to divide by: such a channel is
    constant, its bias.
    """
    factor = scale * lax.rsqrt(var + epsilon)
    return factor, jnp.where(jnp.abs(factor) > 1e-12, factor, 1.0)


class QuantizedDense(nn.Dense):
    """A dense layer whose kernel is rounded; the network rounds its output after it.

    Attributes:
      quantizer: constructor of a `Quantizer`; the site is `weights`.
    """

    quantizer: ModuleDef = Quantizer

    @nn.compact
    def __call__(self, inputs: Float[Array, "*b C"]) -> Float[Array, "*b F"]:
        _record(self, INPUTS, inputs)
        kernel = self.param(
            "kernel", self.kernel_init, (inputs.shape[-1], self.features), self.param_dtype
        )
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        kernel = self.quantizer(name=WEIGHTS)(kernel)
        x, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        y = jnp.matmul(x, kernel)
        _record(self, PRODUCTS, y)
        return y + bias


def quantize_network(
    network: Network, rules: Rules, *, axis_name: str | None = None, statistics: str = "batch"
) -> Network:
    """The same network with every layer and tensor rounded according to the rules.

    Args:
      network: with float layers.
      rules: only their structure is used (`Rules.structure`); bits are variables.
      axis_name: mapped axis of the devices that compute parts of one batch.
      statistics: one of STATISTICS; see `QuantizedConvBNAct`.
    """
    quantizer = functools.partial(Quantizer, rules=rules.structure, axis_name=axis_name)
    return network.clone(
        conv=functools.partial(QuantizedConv, quantizer=quantizer),
        layer=functools.partial(QuantizedConvBNAct, quantizer=quantizer, statistics=statistics),
        dense=functools.partial(QuantizedDense, quantizer=quantizer),
        point=quantizer,
    )


def rules_of(network: Network) -> Rules:
    """The rules, as structure only, of a network from `quantize_network`.

    Raises:
      RuleError: the network is not quantised.
    """
    rules = getattr(network.point, "keywords", {}).get("rules")
    if rules is None:
        raise RuleError("the network is not quantised; quantise it first")
    return rules


def sites(quant: Any) -> list[str]:
    """Names of the sites in a `quant` collection, sorted."""
    found = set()
    for path, _ in jax.tree_util.tree_leaves_with_path(quant):
        names = [str(getattr(key, "key", key)) for key in path]
        if names[-1] == "bits":
            found.add("/".join(names[:-1]))
    return sorted(found)
