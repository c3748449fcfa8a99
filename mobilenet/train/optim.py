"""Optimisers and learning-rate schedules.

The learning rate and the weight decay, which sweeps vary, are arguments of `update` instead of
constants of the compiled step, so runs that only differ in them share one compilation.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[int], float]
CLASSIFIER = "classifier"  # the module whose learning rate `backbone_rate` does not scale
QUANTIZER = ("step", "offset", "clip")  # parameters of quantisers, which have their own rate


def decay_mask(params: Any, *, depthwise: bool) -> Any:
    """The parameters that weight decay applies to: kernels, but no biases or BN scale and bias.

    Args:
      params: the `params` collection.
      depthwise: whether depthwise kernels decay; TensorFlow slim leaves them out.

    Returns:
      A pytree of booleans shaped like `params`.
    """

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        names = [str(getattr(key, "key", key)) for key in path]
        return names[-1] == "kernel" and (depthwise or "depthwise" not in names)

    return jax.tree_util.tree_map_with_path(decays, params)


def _no_state(params: Any) -> optax.EmptyState:
    del params
    return optax.EmptyState()


def _add_weight_decay(depthwise: bool) -> optax.GradientTransformationExtraArgs:
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        weight_decay = extra["weight_decay"]
        mask = decay_mask(params, depthwise=depthwise)
        updates = jax.tree.map(
            lambda u, p, decays: u + weight_decay * p if decays else u, updates, params, mask
        )
        return updates, state

    return optax.GradientTransformationExtraArgs(_no_state, update)


def _scale_by_learning_rate(frozen: Sequence[str]) -> optax.GradientTransformationExtraArgs:
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params
        rate = -extra["learning_rate"]
        backbone = rate * extra.get("backbone_rate", 1.0)

        def scale(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
            module = str(getattr(path[0], "key", path[0])) if path else ""
            if module in frozen:
                return jnp.zeros_like(update)  # nor do weight decay and momentum change it
            own = rate if module == CLASSIFIER else backbone
            if str(getattr(path[-1], "key", path[-1])) in QUANTIZER:
                own = own * extra.get("step_rate", 1.0)
            return own * update

        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformationExtraArgs(_no_state, update)


def make_optimizer(
    name: str,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    decay: float = 0.9,
    epsilon: float = 1.0,
    clip_norm: float = 0.0,
    decay_depthwise: bool = True,
    frozen: Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    """An optimiser whose `update` takes its rates as keyword arguments.

    The arguments are `learning_rate`, `weight_decay`, `backbone_rate` (the learning rate of all
    modules except the classifier, as a fraction of the classifier's) and `step_rate` (the rate of
    quantisers' steps, as a fraction of their module's). The last two are 1 by default.

    Args:
      name: "sgd": weight decay is added to the gradient, momentum accumulates gradients, the rate
        scales the result (PyTorch's order). "rmsprop": as in TensorFlow, which the paper used:
        weight decay is added to the gradient, the mean square starts at one, epsilon is inside the
        root, and momentum accumulates steps that the rate has already scaled. "adamw": decoupled
        weight decay (Loshchilov & Hutter, arXiv 1711.05101), scaled by the rate.
      momentum: of sgd and rmsprop; adamw's b1.
      decay: rmsprop's averaging of squares; adamw's b2.
      epsilon: of rmsprop and adamw.
      clip_norm: largest global gradient norm; 0 is off.
      decay_depthwise: see `decay_mask`.
      frozen: top-level modules whose parameters do not change.
    """
    parts: list[optax.GradientTransformation] = []
    if clip_norm:
        parts.append(optax.clip_by_global_norm(clip_norm))
    weight_decay, learning_rate = (
        _add_weight_decay(decay_depthwise),
        _scale_by_learning_rate(frozen),
    )
    trace = [optax.trace(momentum, nesterov)] if momentum else []
    if name == "sgd":
        parts += [weight_decay, *trace, learning_rate]
    elif name == "rmsprop":
        squares = optax.scale_by_rms(decay, epsilon, initial_scale=1.0, eps_in_sqrt=True)
        parts += [weight_decay, squares, learning_rate, *trace]
    elif name == "adamw":
        adam = optax.scale_by_adam(b1=momentum, b2=decay, eps=epsilon)
        parts += [adam, weight_decay, learning_rate]
    else:
        raise ValueError(f"The optimiser is {name!r}; allowed are sgd, rmsprop, adamw.")
    return optax.chain(*parts)


def make_schedule(
    name: str,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int = 0,
    final_fraction: float = 0.0,
    decay_rate: float = 0.98,
    decay_steps: float = 1.0,
    staircase: bool = True,
    boundaries: Sequence[float] = (),
) -> Schedule:
    """Learning rate of the update that follows `step` completed updates.

    Args:
      name: "constant", "cosine" (to `final_fraction` of the peak at `total_steps`), "exponential"
        (times `decay_rate` every `decay_steps`, in jumps if `staircase`), or "piecewise" (times
        `decay_rate` at each of `boundaries`, in steps).
      peak: rate after the warm-up.
      total_steps: length of the run.
      warmup_steps: linear rise, which reaches `peak` after this many updates. Cosine spans the
        steps after it; exponential and piecewise count from step 0.
    """
    cosine_steps = max(1, total_steps - warmup_steps)
    if name not in ("constant", "cosine", "exponential", "piecewise"):
        raise ValueError(
            f"The schedule is {name!r}; allowed are constant, cosine, exponential, piecewise."
        )

    def after_warmup(step: int) -> float:
        """Fraction of the peak."""
        if name == "cosine":
            progress = min(1.0, (step - warmup_steps) / cosine_steps)
            return final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * progress)) / 2
        if name == "exponential":
            periods = step // decay_steps if staircase else step / decay_steps
            return decay_rate**periods
        if name == "piecewise":
            return decay_rate ** sum(step >= boundary for boundary in boundaries)
        return 1.0

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return peak * (step + 1) / warmup_steps
        return peak * after_warmup(step)

    return schedule
