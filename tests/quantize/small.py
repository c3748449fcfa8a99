"""A small MobileNetV2 for the digits, trained for a moment or not, and quantised in many ways."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from quantize import variants
from sklearn import datasets

from mobilenet.models.mobilenet_v2 import BlockSpec, MobileNetV2, plan_blocks
from mobilenet.quantize import layers, ptq, rules

SHAPE = (8, 8, 1)
WEIGHTS = {
    "bits": 8,
    "symmetric": True,
    "per_channel": True,
    "estimator": "min_max",
    "ranges": "follow",
}
ACTIVATIONS = {"bits": 8, "symmetric": False, "estimator": "min_max", "ranges": "observe"}


def network(**changes: Any) -> MobileNetV2:
    """Two stages with a shortcut; `plan` changes the plan's arguments."""
    plan = {
        "blocks": (BlockSpec(1, 8, 1, 1), BlockSpec(4, 8, 2, 2)),
        "stem_features": 8,
        "stem_strides": 1,
        "head_features": 24,
        **changes.pop("plan", {}),
    }
    return MobileNetV2(plan=plan_blocks(**plan), num_classes=10, bn_momentum=0.8, **changes)


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images, about [-1, 1], and labels; the last 360 are for tests."""
    found: Any = datasets.load_digits()
    return found.images[..., None].astype(np.float32) / 8 - 1, found.target


def train(model: MobileNetV2, steps: int = 250) -> dict[str, Any]:
    """Variables of a network after some steps; on the host."""
    images, labels = digits()
    optimizer = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def step(variables: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            logits, new = model.apply(
                {**variables, "params": params}, x, True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new

        grads, new = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(grads, state)
        return {"params": optax.apply_updates(variables["params"], updates), **new}, state

    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    state = optimizer.init(variables["params"])
    generator = np.random.default_rng(0)
    for _ in range(steps):
        chosen = generator.integers(0, len(images) - 360, 128)
        variables, state = step(variables, state, images[chosen], labels[chosen])
    return jax.device_get(variables)


@functools.cache
def trained(se_gate: str = "") -> tuple[MobileNetV2, dict[str, Any]]:
    """The network and its variables; with squeeze-and-excitation if a gate is given."""
    changes = {"se_gate": se_gate, "plan": {"se_ratio": 0.25}} if se_gate else {}
    model = network(**changes)
    with variants.optimised():  # hundreds of steps
        return model, train(model)


def untrained(model: MobileNetV2) -> dict[str, Any]:
    """Random variables whose statistics are those of some digits."""
    images, _ = digits()
    return variants.settled(model, variants.random_variables(model, shape=SHAPE), images[:256])


def quantized(
    model: MobileNetV2,
    variables: Any,
    rows: tuple[tuple[str, str], ...] = (),
    **changes: dict[str, Any],
) -> tuple[MobileNetV2, dict[str, Any]]:
    """A network after PTQ with 256 images; `weights` and `activations` change their defaults."""
    found = rules.parse(
        {**WEIGHTS, **changes.pop("weights", {})},
        {**ACTIVATIONS, **changes.pop("activations", {})},
        rows,
    )
    model = layers.quantize_network(model, found)  # pyright: ignore[reportAssignmentType]
    settings = ptq.Settings(**changes.pop("settings", {}))
    assert not changes
    images, _ = digits()
    done, _ = ptq.prepare(model, found, variables, lambda: [images[:256]], SHAPE, settings)
    return model, done
