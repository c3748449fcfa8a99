"""What the tests of several networks do with a small one: images, variables, a few steps."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

IMAGES = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)


@functools.cache
def initial(model: Any) -> Any:
    """Variables for `IMAGES`."""
    return jax.jit(model.init)(jax.random.key(0), IMAGES)


def remat_count(model: Any) -> int:
    """How many blocks the backward pass of a training step recomputes."""

    def loss(params: Any) -> Any:
        variables = {**initial(model), "params": params}
        return model.apply(variables, IMAGES, True, mutable=["batch_stats"])[0].sum()

    return str(jax.make_jaxpr(jax.grad(loss))(initial(model)["params"])).count("prevent_cse=")


def assert_learns(model: Any) -> None:
    """Eight steps of gradient descent move every parameter and statistic, and lower the loss."""
    variables = initial(model)
    labels = jnp.arange(4)

    @jax.jit
    def step(params: Any, batch_stats: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                IMAGES,
                True,
                mutable=["batch_stats"],
            )
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
            return -picked.mean(), updated["batch_stats"]

        (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return value, jax.tree.map(lambda p, g: p - 0.05 * g, params, grads), batch_stats

    params, batch_stats = variables["params"], variables["batch_stats"]
    losses = []
    for _ in range(8):
        value, params, batch_stats = step(params, batch_stats)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    moved = jax.tree.map(
        np.array_equal, (params, batch_stats), (variables["params"], variables["batch_stats"])
    )
    assert not any(jax.tree.leaves(moved))
