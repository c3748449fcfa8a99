"""Distillation: a student's loss depends on a teacher that gets the same augmented images.

The soft loss replaces a part of the loss instead of being added to it, so a run without a teacher,
or with a weight of 0, has a loss of the same scale.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

TRANSFERS = ("none", "attention", "features")


def soft_loss(
    logits: Float[Array, "B K"], teacher: Float[Array, "B K"], temperature: Any
) -> Float[Array, " B"]:
    """Divergence of the student's softened distribution from the teacher's, in nats, times T^2.

    T^2 keeps the scale of the gradient when the temperature rises (Hinton et al. 2015, arXiv
    1503.02531, section 2). The divergence is the cross entropy minus the teacher's own entropy: the
    gradient is the same, and 0 means agreement.

    Args:
      logits, teacher: logits of the student and of the teacher.
      temperature: T, above 0.
    """
    student = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    target = jax.nn.log_softmax(teacher.astype(jnp.float32) / temperature)
    return jnp.square(temperature) * jnp.sum(jnp.exp(target) * (target - student), axis=-1)


def attention(x: Float[Array, "B H W C"]) -> Float[Array, "B P"]:
    """The positions where a map is active: the mean of squares over channels, of unit length.

    Zagoruyko & Komodakis 2017 (arXiv 1612.03928), section 3.1, with p = 2. The result does not
    depend on the number of channels.
    """
    energy = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1).reshape(x.shape[0], -1)
    return energy / (jnp.linalg.norm(energy, axis=-1, keepdims=True) + 1e-8)


def transfer_loss(
    student: Sequence[Float[Array, "B H W C"]], teacher: Sequence[Array], kind: str
) -> Float[Array, " B"]:
    """Distance of the student's maps from the teacher's: the mean over pairs.

    Args:
      student, teacher: maps of the same height and width, pair by pair.
      kind: "attention": squared distance of `attention`. "features": mean squared difference over
        the teacher's mean square; both maps must have the same channels.
    """
    values = []
    for own, other in zip(student, teacher, strict=True):
        if kind == "attention":
            values.append(jnp.sum(jnp.square(attention(own) - attention(other)), axis=-1))
        else:
            own, other = own.astype(jnp.float32), other.astype(jnp.float32)
            axes = tuple(range(1, other.ndim))
            scale = jnp.mean(jnp.square(other), axis=axes) + 1e-8
            values.append(jnp.mean(jnp.square(own - other), axis=axes) / scale)
    return sum(values[1:], values[0]) / len(values)


def pair_maps(
    student: Mapping[str, tuple[int, ...]], teacher: Mapping[str, tuple[int, ...]], kind: str
) -> list[tuple[str, str]]:
    """Stages of the two networks that can be compared: the last of each at every resolution.

    Args:
      student, teacher: endpoint -> shape [B, H, W, C], in order of computation.
      kind: "features" only takes pairs with the same channels.

    Returns:
      (student's endpoint, teacher's endpoint), from the highest resolution on; [] if none fit.
    """

    def last(shapes: Mapping[str, tuple[int, ...]]) -> dict[tuple[int, ...], str]:
        return {shape[1:3]: name for name, shape in shapes.items() if name.startswith("stage_")}

    own, other = last(student), last(teacher)
    pairs = [(name, other[size]) for size, name in own.items() if size in other]
    if kind == "features":
        pairs = [(a, b) for a, b in pairs if student[a][-1] == teacher[b][-1]]
    return pairs


def make_guide(
    teach: Callable[[Any, jax.Array], tuple[jax.Array, Mapping[str, jax.Array]]],
    kind: str,
    pairs: Sequence[tuple[str, str]],
) -> Callable[..., Float[Array, " B"]]:
    """Makes the function that changes a student's loss, for `mobilenet.train.steps`.

    Args:
      teach: (variables, images as the student gets them) -> the teacher's logits and endpoints.
      kind: one of TRANSFERS.
      pairs: from `pair_maps`, for a kind that is not "none".

    Returns:
      (values [B], (logits, endpoints), images, hyper, variables) -> values. A fraction
      `soft_weight` of the result is the soft loss at `temperature`; `transfer_weight` times the
      transfer loss is added.
    """

    def guide(values: Any, output: Any, images: Any, hyper: Any, variables: Any) -> Any:
        logits, endpoints = output
        known, seen = lax.stop_gradient(teach(variables, images))
        weight = hyper["soft_weight"]
        values = (1.0 - weight) * values + weight * soft_loss(logits, known, hyper["temperature"])
        if kind != "none":
            own, other = [endpoints[a] for a, _ in pairs], [seen[b] for _, b in pairs]
            values = values + hyper["transfer_weight"] * transfer_loss(own, other, kind)
        return values

    return guide
