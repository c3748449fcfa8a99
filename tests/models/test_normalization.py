"""BatchNorm with its activation against flax.linen.BatchNorm followed by the activation."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet.models.normalization import ACTIVATIONS, BatchNorm

REFERENCE_ACTIVATION = {
    "identity": lambda z: z,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "hard_swish": jax.nn.hard_swish,
}


class Reference(nn.Module):
    """nn.BatchNorm and an activation, differentiated by JAX, in the variables of BatchNorm."""

    activation: str
    axis_name: str | None = None
    axis_index_groups: Any = None

    @nn.compact
    def __call__(self, x, use_running_average):
        y = nn.BatchNorm(
            momentum=0.9,
            epsilon=1e-3,
            dtype=x.dtype,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            use_fast_variance=False,
        )
        return REFERENCE_ACTIVATION[self.activation](y(x, use_running_average))


def variables(channels, dtype: Any = np.float64):
    random = np.random.default_rng(1)
    return {
        "params": {
            "scale": random.uniform(0.5, 3, channels).astype(dtype),
            "bias": random.standard_normal(channels).astype(dtype),
        },
        "batch_stats": {
            "mean": random.standard_normal(channels).astype(dtype),
            "var": random.uniform(0.5, 2, channels).astype(dtype),
        },
    }


def nested(state):
    return {kind: {"BatchNorm_0": leaves} for kind, leaves in state.items()}


def images(shape, offset=0.0, dtype: Any = np.float64):
    return (2 * np.random.default_rng(0).standard_normal(shape) + offset).astype(dtype)


def step(module, state, x, wrap=lambda s: s):
    """Output, new statistics and gradients of a loss that weighs every pixel differently."""

    def loss(params, x):
        y, updated = module.apply(
            wrap({"params": params, "batch_stats": state["batch_stats"]}),
            x,
            False,
            mutable=["batch_stats"],
        )
        weights = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return jnp.sum(weights * jnp.sin(y)), (y, jax.tree.leaves(updated))

    gradients, outputs = jax.grad(loss, (0, 1), has_aux=True)(state["params"], x)
    return outputs, gradients


def assert_close(actual, expected, tolerance=1e-10):
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), actual, expected
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (2, 1, 1, 3), (7, 5)])
def test_training_equals_flax_in_float64(activation, shape):
    with jax.enable_x64(True):
        x, state = images(shape, 0.5), variables(shape[-1])
        ours = BatchNorm(activation=activation, dtype=jnp.float64)
        actual = jax.jit(partial(step, ours))(state, x)
        expected = jax.jit(partial(step, Reference(activation), wrap=nested))(state, x)
        assert actual[0][0].dtype == jnp.float64
        assert_close(actual, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_evaluation_equals_flax_in_float64(activation):
    with jax.enable_x64(True):
        x, state = images((3, 5, 4, 6)), variables(6)
        actual = BatchNorm(activation=activation, dtype=jnp.float64).apply(state, x, True)
        assert_close(actual, Reference(activation).apply(nested(state), x, True))


def test_variables_are_those_of_flax():
    x = jnp.ones((2, 3, 3, 5))
    ours = BatchNorm().init(jax.random.key(0), x, False)
    flax = nn.BatchNorm().init(jax.random.key(0), x, use_running_average=False)
    assert jax.tree.structure(ours) == jax.tree.structure(flax)
    jax.tree.map(np.testing.assert_array_equal, ours, flax)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(ours))


@pytest.mark.parametrize("offset", [0.0, 20.0, -100.0])
def test_float32_statistics_lose_what_their_docstring_says(offset):
    x = images((4, 16, 16, 3), offset, np.float32)
    state = variables(3, np.float32)
    _, updated = jax.jit(
        lambda x: BatchNorm(momentum=0.0).apply(state, x, False, mutable=["batch_stats"])
    )(x)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(
        updated["batch_stats"]["mean"], exact.mean((0, 1, 2)), rtol=1e-6, atol=1e-6
    )
    # 1024 terms in at least 16 lanes: up to 64 roundings of 2^-24, of a mean square that is
    # 1 + mean^2 / var times the variance. The deviation of `images` is 2.
    lost = 64 * 2.0**-24 * (1 + offset**2 / 4)
    np.testing.assert_allclose(updated["batch_stats"]["var"], exact.var((0, 1, 2)), rtol=lost)


def test_a_constant_channel_has_no_negative_variance():
    x = np.full((4, 16, 16, 3), 1234.567, np.float32)
    module, state = BatchNorm(momentum=0.0), variables(3, np.float32)
    y, updated = module.apply(state, x, False, mutable=["batch_stats"])
    assert np.all(np.asarray(updated["batch_stats"]["var"]) >= 0) and np.all(np.isfinite(y))


def test_float32_gradients_survive_an_offset():
    with jax.enable_x64(True):
        x, state = images((4, 16, 16, 3), 30.0, np.float32), variables(3, np.float32)
        exact = jax.jit(partial(step, Reference("relu6"), wrap=nested))(
            jax.tree.map(np.float64, state), x.astype(np.float64)
        )
    actual = jax.jit(partial(step, BatchNorm(activation="relu6")))(state, x)
    assert_close(actual[1], exact[1], 2e-3)


def test_half_precision_keeps_float32_statistics():
    x = jnp.asarray(images((8, 16, 16, 3), 4.0), jnp.bfloat16)
    module = BatchNorm(momentum=0.0, dtype=jnp.bfloat16, activation="relu6")
    (y, (mean, var)), (_, dx) = jax.jit(partial(step, module))(variables(3, np.float32), x)
    assert y.dtype == dx.dtype == jnp.bfloat16
    assert mean.dtype == var.dtype == jnp.float32
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize("groups", [None, [[0, 1]], [[0], [1]]])
def test_synchronised_across_devices(groups):
    if jax.local_device_count() < 2:
        pytest.skip("needs two devices")
    shards = np.stack([images((3, 4, 5, 3)), images((3, 4, 5, 3), 5.0) * 3]).astype(np.float32)
    state = variables(3, np.float32)

    def run(module, wrap):
        call = partial(step, module, wrap=wrap)
        return jax.pmap(
            call, axis_name="devices", in_axes=(None, 0), devices=jax.local_devices()[:2]
        )(state, shards)

    options: dict[str, Any] = dict(
        activation="relu6", axis_name="devices", axis_index_groups=groups
    )
    actual = run(BatchNorm(**options), lambda s: s)
    assert_close(actual, run(Reference(**options), nested), 2e-4)
    (_, (mean, _)), _ = actual
    assert np.allclose(mean[0], mean[1]) == (groups != [[0], [1]])


def test_synchronised_equals_one_large_batch_in_float64():
    if jax.local_device_count() < 2:
        pytest.skip("needs two devices")
    with jax.enable_x64(True):
        shards = np.stack([images((3, 4, 5, 3)), images((3, 4, 5, 3), 5.0) * 3])
        state = variables(3)
        weights = np.cos(np.arange(shards.size)).reshape(shards.shape)

        def gradients(axis_name, x, weights):
            module = BatchNorm(activation="hard_swish", axis_name=axis_name, dtype=jnp.float64)

            def loss(params, x):
                y, _ = module.apply({**state, "params": params}, x, False, mutable=["batch_stats"])
                return jnp.sum(weights * jnp.sin(y))

            return jax.grad(loss, (0, 1))(state["params"], x)

        together = gradients(None, shards.reshape(-1, 4, 5, 3), weights.reshape(-1, 4, 5, 3))
        dparams, dx = jax.pmap(
            partial(gradients, "d"), axis_name="d", devices=jax.local_devices()[:2]
        )(shards, weights)
        assert_close(dx.reshape(-1, 4, 5, 3), together[1])
        assert_close(jax.tree.map(lambda leaf: leaf.sum(0), dparams), together[0])


@pytest.mark.parametrize("activation", ["identity", "hard_swish"])
def test_second_derivatives(activation):
    with jax.enable_x64(True):
        x, state = images((2, 3, 4, 3)), variables(3)
        ours = BatchNorm(activation=activation, dtype=jnp.float64)

        def products(module, wrap):
            def gradient(params, x):
                return step(module, {**state, "params": params}, x, wrap)[1]

            def along(params, x):
                return sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(gradient(params, x)))

            point = (state["params"], x)
            direction = jax.tree.map(np.cos, point)
            return jax.jvp(gradient, point, direction)[1], jax.grad(along, (0, 1))(*point)

        actual = jax.jit(lambda: products(ours, lambda s: s))()
        assert_close(actual, jax.jit(lambda: products(Reference(activation), nested))(), 1e-8)


def test_vmap_and_checkpoint():
    with jax.enable_x64(True):
        x, state = np.stack([images((2, 3, 4, 3)), images((2, 3, 4, 3), 1.0)]), variables(3)
        module = BatchNorm(activation="relu6", dtype=jnp.float64)
        alone = jax.jit(partial(step, module))
        mapped = jax.jit(jax.vmap(jax.checkpoint(lambda x: step(module, state, x))))(x)
        for i in range(2):
            assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), alone(state, x[i]))


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation"):
        BatchNorm(activation="gelu").init(jax.random.key(0), jnp.ones((1, 2, 2, 3)), False)
