"""Initial values, drawn on the host: they need no compilation and are equal on all backends.

JAX's samplers compile one program per parameter shape: for a MobileNetV2 that takes 15 seconds
before the first step. Here the PRNG key seeds NumPy's Philox generator, whose raw stream NumPy
guarantees never to change, and the normal quantile function turns the stream into samples. The same
key gives the same bits eagerly, under `jit` and under `vmap`, on CPU and on GPU.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr, ndtri

Initializer = Callable[..., jax.Array]


def _uniform(key_data: np.ndarray, size: int) -> np.ndarray:
    """Doubles in (0, 1) from the key's bits."""
    words = np.asarray(key_data, np.uint32).ravel()
    seed = sum(int(word) << (32 * i) for i, word in enumerate(words))
    raw = np.random.Philox(key=seed % 2**128).random_raw(size)
    return ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal(stddev: float, bound: float | None = None) -> Initializer:
    """Normal samples with mean 0.

    Args:
      stddev: standard deviation of the normal, before truncation.
      bound: truncate at this many standard deviations on both sides.

    Returns:
      A function of (key, shape, dtype), as Flax expects of an initialiser.
    """
    low = 0.0 if bound is None else float(ndtr(-bound))

    def initialize(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        def draw(key_data: np.ndarray) -> np.ndarray:
            uniform = _uniform(key_data, math.prod(shape))
            return (stddev * ndtri(low + (1 - 2 * low) * uniform)).reshape(shape).astype(dtype)

        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        data = jax.random.key_data(key) if typed else key
        if not isinstance(data, jax.core.Tracer):
            return jnp.asarray(draw(np.asarray(data)))
        result = jax.ShapeDtypeStruct(tuple(shape), dtype)
        return jax.pure_callback(draw, result, data, vmap_method="sequential")

    return initialize


def variance_scaling(scale: float, mode: str) -> Initializer:
    """Normal samples with variance scale / fan, for kernels [..., C_in, C_out].

    Args:
      scale: 2 for He et al. 2015 (arXiv 1502.01852), 1 for LeCun.
      mode: "fan_in" divides by the inputs of one output, "fan_out" by the outputs of one input.
    """

    def initialize(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        window = math.prod(shape[:-2])
        fan = window * (shape[-2] if mode == "fan_in" else shape[-1])
        return normal(math.sqrt(scale / fan))(key, shape, dtype)

    return initialize


INITIALIZERS: dict[str, Initializer] = {
    # torchvision's MobileNetV2: Kaiming normal over the fan-out.
    "he_fan_out": variance_scaling(2.0, "fan_out"),
    "he_fan_in": variance_scaling(2.0, "fan_in"),
    "lecun_fan_in": variance_scaling(1.0, "fan_in"),
    # TensorFlow slim's MobileNetV2 training scope (research/slim/nets/mobilenet/mobilenet.py).
    "slim": normal(0.09, bound=2.0),
}
