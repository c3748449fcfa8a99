"""Optimisers against the papers' update rules by hand, schedules at their corners."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mobilenet.train import optim

PARAMS = {
    "stem": {"conv": {"kernel": jnp.array([1.0, -2.0])}, "bn": {"scale": jnp.array([1.0])}},
    "blocks_0_0": {"depthwise": {"conv": {"kernel": jnp.array([3.0])}}},
    "classifier": {"kernel": jnp.array([0.5]), "bias": jnp.array([2.0])},
}


def updates(optimizer: Any, grads: list[Any], rate: float, decay: float, params: Any) -> Any:
    state = optimizer.init(params)
    for grad in grads:
        delta, state = optimizer.update(grad, state, params, learning_rate=rate, weight_decay=decay)
        params = optax.apply_updates(params, delta)
    return params


def test_decay_mask_spares_norms_and_biases_and_depthwise_on_request():
    mask = optim.decay_mask(PARAMS, depthwise=False)
    assert mask == {
        "stem": {"conv": {"kernel": True}, "bn": {"scale": False}},
        "blocks_0_0": {"depthwise": {"conv": {"kernel": False}}},
        "classifier": {"kernel": True, "bias": False},
    }
    assert optim.decay_mask(PARAMS, depthwise=True)["blocks_0_0"]["depthwise"]["conv"]["kernel"]


def test_sgd_with_momentum_by_hand():
    params = {"kernel": jnp.array([1.0])}
    got = updates(
        optim.make_optimizer("sgd", momentum=0.9),
        [{"kernel": jnp.array([2.0])}] * 2,
        0.1,
        0.5,
        params,
    )
    first = 1.0 - 0.1 * (2.0 + 0.5 * 1.0)  # 0.75
    velocity = 0.9 * 2.5 + (2.0 + 0.5 * first)
    np.testing.assert_allclose(got["kernel"], [first - 0.1 * velocity], rtol=1e-6)


def test_nesterov_looks_ahead():
    params = {"kernel": jnp.array([1.0])}
    optimizer = optim.make_optimizer("sgd", momentum=0.9, nesterov=True)
    got = updates(optimizer, [{"kernel": jnp.array([2.0])}], 0.1, 0.0, params)
    np.testing.assert_allclose(got["kernel"], [1.0 - 0.1 * (2.0 + 0.9 * 2.0)], rtol=1e-6)


def test_rmsprop_is_tensorflows():
    # tf.compat.v1.train.RMSPropOptimizer: ms starts at one, epsilon inside the root, momentum on
    # steps already scaled by the rate.
    rho, momentum, epsilon, rate = 0.9, 0.9, 1.0, 0.045
    value, square, step = 1.0, 1.0, 0.0
    for grad, this_rate in ((2.0, rate), (-1.0, rate / 2)):
        square = rho * square + (1 - rho) * grad**2
        step = momentum * step + this_rate * grad / np.sqrt(square + epsilon)
        value -= step
    optimizer = optim.make_optimizer("rmsprop", momentum=momentum, decay=rho, epsilon=epsilon)
    params: Any = {"kernel": jnp.array([1.0])}
    state = optimizer.init(params)
    for grad, this_rate in ((2.0, rate), (-1.0, rate / 2)):
        delta, state = optimizer.update(
            {"kernel": jnp.array([grad])}, state, params,
            learning_rate=this_rate, weight_decay=0.0,
        )  # fmt: skip
        params = optax.apply_updates(params, delta)
    np.testing.assert_allclose(params["kernel"], [value], rtol=1e-6)


def test_adamw_equals_optax():
    ours = optim.make_optimizer("adamw", momentum=0.9, decay=0.999, epsilon=1e-8)
    theirs = optax.adamw(0.01, weight_decay=0.1, mask=lambda p: optim.decay_mask(p, depthwise=True))
    grads = [jax.tree.map(lambda x: jnp.sin(7 * x + i), PARAMS) for i in range(3)]  # noqa: B023
    got = updates(ours, grads, 0.01, 0.1, PARAMS)
    params, state = PARAMS, theirs.init(PARAMS)
    for grad in grads:
        delta, state = theirs.update(grad, state, params)
        params = optax.apply_updates(params, delta)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, params)


def test_clipping_bounds_the_global_norm():
    optimizer = optim.make_optimizer("sgd", momentum=0.0, clip_norm=1.0)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    got = updates(
        optimizer, [{"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}], 1.0, 0.0, params
    )
    np.testing.assert_allclose(np.concatenate([got["a"], got["b"]]), [-0.6, 0.0, -0.8], rtol=1e-6)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="allowed are sgd, rmsprop, adamw"):
        optim.make_optimizer("lamb")
    with pytest.raises(ValueError, match="allowed are constant, cosine"):
        optim.make_schedule("linear", peak=1.0, total_steps=2)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("constant", {}, {0: 2.0, 99: 2.0}),
        ("cosine", {}, {0: 2.0, 50: 1.0, 100: 0.0}),
        ("cosine", {"final_fraction": 0.1}, {100: 0.2}),
        ("cosine", {"warmup_steps": 20}, {0: 0.1, 9: 1.0, 19: 2.0, 20: 2.0, 60: 1.0, 100: 0.0}),
        ("exponential", {"decay_rate": 0.5, "decay_steps": 10}, {9: 2.0, 10: 1.0, 25: 0.5}),
        (
            "exponential",
            {"decay_rate": 0.5, "decay_steps": 10, "staircase": False},
            {5: 2 * 0.5**0.5, 10: 1.0},
        ),
        ("piecewise", {"decay_rate": 0.1, "boundaries": [30, 60]}, {29: 2.0, 30: 0.2, 60: 0.02}),
    ],
)
def test_schedules(name: str, settings: dict[str, Any], expected: dict[int, float]):
    schedule = optim.make_schedule(name, peak=2.0, total_steps=100, **settings)
    for step, rate in expected.items():
        assert schedule(step) == pytest.approx(rate, rel=1e-5, abs=1e-7)
