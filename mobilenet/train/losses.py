"""Losses: functions of logits and soft targets, with one value per example."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def smooth(targets: Float[Array, "B K"], label_smoothing: jax.Array | float) -> Float[Array, "B K"]:
    """Mixes targets with the uniform distribution (Szegedy et al. 2015, arXiv 1512.00567, sec. 7).

    Args:
      targets: distributions over K classes.
      label_smoothing: weight of the uniform distribution, in [0, 1).
    """
    return targets * (1.0 - label_smoothing) + label_smoothing / targets.shape[-1]


def cross_entropy(logits: Float[Array, "B K"], targets: Float[Array, "B K"]) -> Float[Array, " B"]:
    """Cross entropy in nats of the softmax of `logits` against distributions, in float32."""
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.sum(targets * log_probabilities, axis=-1)
