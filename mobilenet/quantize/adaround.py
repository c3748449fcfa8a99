"""AdaRound: learning whether a weight rounds up or down (Nagel et al. 2020, arXiv 2004.10568)."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mobilenet.models.depthwise import Pads
from mobilenet.models.normalization import activate
from mobilenet.quantize import numerics

# Section 3.2: the stretched sigmoid's ends, and the weight of the regulariser.
STRETCH = (-0.1, 1.1)
REGULARIZER = 0.01
# The exponent of the regulariser falls from 20 to 2, after a fifth of the steps without it. The
# paper's Adam takes 10,000 steps at its default rate of 1e-3; a rate ten times as high needs fewer.
LEARNING_RATE = 1e-2
EXPONENTS = (20.0, 2.0)
WARMUP = 0.2
BATCH = 256  # positions per step


class Problem(NamedTuple):
    """One layer as a product over sampled positions.

    Attributes:
      inputs: the layer's inputs in the quantised network: [N, K] for a dense layer, [N, K, C] for a
        depthwise one, with the K numbers under the window.
      targets: the float layer's outputs for the float network's inputs, before bias and activation,
        [N, C].
      bias: [C], the same in both networks.
      activation: one of `mobilenet.models.normalization.ACTIVATIONS`.
    """

    inputs: np.ndarray
    targets: np.ndarray
    bias: np.ndarray
    activation: str


def sample_windows(
    x: np.ndarray,
    kernel_size: int,
    strides: int,
    pads: Pads,
    dilation: int,
    positions: np.ndarray,
) -> np.ndarray:
    """The input values under a convolution's window at some output positions.

    Args:
      x: float [B, H, W, C].
      kernel_size, strides, dilation: of the convolution.
      pads: zeros ((top, bottom), (left, right)).
      positions: integers [N, 3] of (image, row, column) of the output.

    Returns:
      [N, kernel_size ** 2, C].
    """
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    image, row, column = positions.T
    taps = dilation * np.arange(kernel_size)
    rows = row[:, None, None] * strides + taps[:, None]
    columns = column[:, None, None] * strides + taps
    found = x[image[:, None, None], rows, columns]
    return found.reshape(len(positions), kernel_size**2, x.shape[-1])


def learn_rounding(
    kernel: np.ndarray,
    grid: numerics.Grid,
    problem: Problem,
    *,
    steps: int,
    seed: int = 0,
) -> tuple[np.ndarray, dict[str, float]]:
    """Codes of a kernel whose products come closest to those of the float layer.

    Minimises the squared difference after the activation, over h in [0, 1], which is added to the
    weight rounded down. A regulariser drives each h to 0 or 1 (equations 21, 24, 25). Weights that
    are 0 stay 0.

    Args:
      kernel: folded, float32 [..., C].
      grid: of the kernel.
      problem: the layer's inputs and targets.
      steps: number of Adam's steps, each on BATCH positions.
      seed: for the choice of positions.

    Returns:
      The kernel on its grid, as reals, and the mean squared difference on all positions with
      nearest rounding (`nearest`) and with learned rounding (`learned`).
    """
    flat = kernel.reshape(-1, kernel.shape[-1]).astype(np.float32)
    codes = np.asarray(flat / grid.scale) + np.asarray(grid.zero_point)
    floor = np.floor(codes)
    rest = np.clip(codes - floor, 1e-3, 1 - 1e-3)
    low, high = STRETCH
    start = -np.log((high - low) / (rest - low) - 1)
    constants = tuple(jnp.asarray(np.asarray(x, np.float32)) for x in (floor, *grid))
    data = tuple(map(jnp.asarray, problem[:3]))
    learned, nearest, best = _learn(
        jnp.asarray(start, jnp.float32),
        jnp.asarray(flat),
        constants,
        data,
        jax.random.key(seed),
        steps=steps,
        activation=problem.activation,
    )
    return np.asarray(learned).reshape(kernel.shape), {
        "nearest": float(nearest),
        "learned": float(best),
    }


@functools.partial(jax.jit, static_argnames=("steps", "activation"))
def _learn(
    start: jax.Array,
    flat: jax.Array,
    constants: tuple[jax.Array, ...],
    data: tuple[jax.Array, ...],
    key: jax.Array,
    *,
    steps: int,
    activation: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    floor, *parts = constants
    grid = numerics.Grid(*parts)
    inputs, targets, bias = data
    optimizer = optax.adam(LEARNING_RATE)
    depthwise = inputs.ndim == 3

    def product(x: jax.Array, weights: jax.Array) -> jax.Array:
        y = jnp.sum(x * weights, axis=1) if depthwise else x @ weights
        return activate(y + bias, activation)

    def soft(v: jax.Array) -> jax.Array:
        return jnp.clip(jax.nn.sigmoid(v) * (STRETCH[1] - STRETCH[0]) + STRETCH[0], 0.0, 1.0)

    def reals(h: jax.Array) -> jax.Array:
        return numerics.from_codes(jnp.clip(floor + h, grid.low, grid.high), grid)

    def loss(v: jax.Array, chosen: jax.Array, progress: jax.Array) -> jax.Array:
        h = soft(v)
        wanted = activate(targets[chosen] + bias, activation)
        # Summed over channels, like the squared Frobenius norm.
        error = jnp.square(product(inputs[chosen], reals(h)) - wanted).sum(-1).mean()
        along = jnp.clip((progress - WARMUP) / (1 - WARMUP), 0.0, 1.0)
        # A cosine from the first exponent to the last.
        exponent = EXPONENTS[1] + (EXPONENTS[0] - EXPONENTS[1]) * (1 + jnp.cos(jnp.pi * along)) / 2
        uncertain = jnp.sum(1 - jnp.abs(2 * h - 1) ** exponent)
        return error + jnp.where(progress < WARMUP, 0.0, REGULARIZER) * uncertain

    def step(carry: Any, index: jax.Array) -> tuple[Any, None]:
        v, state = carry
        chosen = jax.random.randint(
            jax.random.fold_in(key, index), (min(BATCH, len(inputs)),), 0, len(inputs)
        )
        gradient = jax.grad(loss)(v, chosen, index / steps)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(v, updates), state), None

    (v, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), jnp.arange(steps))
    wanted = activate(targets + bias, activation)

    def error(weights: jax.Array) -> jax.Array:
        return jnp.square(product(inputs, weights) - wanted).mean()

    # A weight that is 0 (in a pruned network, for example) is on the grid and stays 0.
    rounded = reals(((soft(v) > 0.5) & (flat != 0)).astype(jnp.float32))
    plain = numerics.from_codes(numerics.to_codes(flat, grid), grid)
    before, after = error(plain), error(rounded)
    # Learned rounding that does not help (with too few positions, for example) is not used.
    return jnp.where(after < before, rounded, plain), before, jnp.minimum(before, after)


def report(errors: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The geometric mean over layers of learned / nearest squared error, and the best and worst."""
    ratios = [max(e["learned"], 1e-30) / max(e["nearest"], 1e-30) for e in errors.values()]
    return {
        "error_ratio": float(np.exp(np.mean(np.log(ratios)))),
        "error_ratio_best": min(ratios),
        "error_ratio_worst": max(ratios),
    }
