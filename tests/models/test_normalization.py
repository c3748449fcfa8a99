"""BatchNorm with its activation against flax.linen.BatchNorm followed by the activation.

A `Product` stands for a 1x1 convolution and normalisation in one: the reference computes both.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet.models import normalization
from mobilenet.models.normalization import ACTIVATIONS, BatchNorm, Product

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
        if isinstance(x, Product):
            x = x.x @ x.kernel[0, 0]
        y = nn.BatchNorm(
            momentum=0.9,
            epsilon=1e-3,
            dtype=x.dtype,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            use_fast_variance=False,
        )
        return REFERENCE_ACTIVATION[self.activation](y(x, use_running_average))


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("running", [False, jnp.asarray(False)])
def test_statistics_of_one_value_are_refused(product: bool, running: Any):
    if product and running is not False:
        return
    x: Any = jnp.ones((1, 1, 1, 2))
    more: Any = jnp.ones((2, 1, 1, 2))
    if product:
        x, more = (Product(each, jnp.ones((1, 1, 2, 4))) for each in (x, more))
    layer = BatchNorm()
    stored = layer.init(jax.random.key(0), x, False)  # initial values need no statistics
    with pytest.raises(ValueError, match="have one value per channel; training needs at least 2"):
        layer.apply(stored, x, running, mutable=["batch_stats"])
    layer.apply(stored, more, running, mutable=["batch_stats"])
    if not product:
        layer.apply(stored, x, True)


@pytest.mark.parametrize(("groups", "ok"), [(None, True), ([[0], [1]], False), ([[0, 1]], True)])
def test_statistics_count_the_values_of_all_devices(groups: Any, ok: bool):
    layer = BatchNorm(axis_name="devices", axis_index_groups=groups)
    x = jnp.asarray([[[1.0]], [[3.0]]])
    stored = layer.init(jax.random.key(0), x[0], False)

    def train(x: Any) -> Any:
        return layer.apply(stored, x, False, mutable=["batch_stats"])[0]

    run = jax.pmap(train, axis_name="devices")
    if ok:
        np.testing.assert_allclose(jnp.ravel(run(x)), [-1, 1], atol=1e-3)
        return
    with pytest.raises(ValueError, match="have one value per channel"):
        run(x)


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


def product(shape, features=6, offset=0.0, dtype: Any = np.float64) -> Any:
    """Images [..., c] and a kernel [1, 1, c, features] that a layer shares."""
    kernel: Any = np.random.default_rng(2).standard_normal((1, 1, shape[-1], features))
    x: Any = images(shape, offset, dtype)
    return Product(x, kernel.astype(dtype))


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


def assert_training_equals_flax(activation, x, channels):
    state = variables(channels)
    ours = BatchNorm(activation=activation, dtype=jnp.float64)
    actual = jax.jit(partial(step, ours))(state, x)
    expected = jax.jit(partial(step, Reference(activation), wrap=nested))(state, x)
    assert actual[0][0].dtype == jnp.float64
    assert_close(actual, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (2, 1, 1, 3), (7, 5)])
def test_training_equals_flax_in_float64(activation, shape):
    with jax.enable_x64(True):
        assert_training_equals_flax(activation, images(shape, 0.5), shape[-1])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("shape", "features"), [((3, 5, 4, 2), 12), ((2, 1, 1, 3), 2)])
def test_a_product_equals_convolution_and_normalisation_in_float64(activation, shape, features):
    with jax.enable_x64(True):
        assert_training_equals_flax(activation, product(shape, features, 0.5), features)


@pytest.mark.parametrize("activation", ["relu", "relu6", "hard_swish"])
@pytest.mark.parametrize("shape", [(3, 14, 4, 6), (2, 22, 3, 5), (2, 1, 1, 3)])
def test_sums_of_large_gradients_equal_flax_in_float64(monkeypatch, activation, shape):
    monkeypatch.setattr(normalization, "LOOP_BYTES", 0)
    with jax.enable_x64(True):
        assert_training_equals_flax(activation, images(shape, 0.5), shape[-1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_large_gradients_are_summed_in_a_loop_on_cpu_alone(monkeypatch, dtype):
    def text(side):
        x = jax.ShapeDtypeStruct((16, side, side, 96), dtype)
        module = BatchNorm(activation="relu6", dtype=dtype)
        return jax.jit(partial(step, module)).lower(variables(96, np.float32), x).as_text()

    # 25 and 1.6 MB.
    assert "stablehlo.while" in text(64)
    assert "stablehlo.while" not in text(16)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "stablehlo.while" not in text(64)


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


@pytest.mark.parametrize("offset", [0.0, 5.0, 20.0])
def test_float32_statistics_of_a_product_lose_what_their_docstring_says(offset):
    x = product((4, 16, 16, 3), 12, offset, np.float32)
    state = variables(12, np.float32)
    _, updated = jax.jit(
        lambda x: BatchNorm(momentum=0.0).apply(state, x, False, mutable=["batch_stats"])
    )(x)
    kernel = x.kernel[0, 0].astype(np.float64)
    center = x.x.astype(np.float64).mean((0, 1, 2))
    exact = x.x.astype(np.float64) @ kernel
    mean, var = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    terms = np.abs(center) @ np.abs(kernel)
    np.testing.assert_allclose(
        updated["batch_stats"]["mean"], mean, rtol=1e-5, atol=1e-6 * terms.max()
    )
    # Errors of the covariance are relative to the mean squares of the inputs; each channel of the
    # product adds its own, weighted by the kernel.
    second = np.sqrt((x.x.astype(np.float64) ** 2).mean((0, 1, 2)))
    lost = 64 * 2.0**-24 * (second @ np.abs(kernel)) ** 2
    assert np.all(np.abs(updated["batch_stats"]["var"] - var) <= lost)


def test_a_product_of_constant_images_has_no_negative_variance():
    x = product((4, 16, 16, 3), dtype=np.float32)
    x = x._replace(x=np.full_like(x.x, 1234.567))
    module, state = BatchNorm(momentum=0.0), variables(6, np.float32)
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


def test_half_precision_of_a_product_keeps_float32_statistics():
    x = jax.tree.map(partial(jnp.asarray, dtype=jnp.bfloat16), product((8, 16, 16, 3), 12, 1.0))
    module = BatchNorm(momentum=0.0, dtype=jnp.bfloat16, activation="relu6")
    (y, (mean, var)), (_, gradient) = jax.jit(partial(step, module))(variables(12, np.float32), x)
    assert y.dtype == gradient.x.dtype == gradient.kernel.dtype == jnp.bfloat16
    assert mean.dtype == var.dtype == jnp.float32
    wide = jax.tree.map(partial(np.asarray, dtype=np.float64), x)
    exact = wide.x @ wide.kernel[0, 0]
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-4)


def test_half_precision_keeps_float32_statistics():
    x = jnp.asarray(images((8, 16, 16, 3), 4.0), jnp.bfloat16)
    module = BatchNorm(momentum=0.0, dtype=jnp.bfloat16, activation="relu6")
    (y, (mean, var)), (_, dx) = jax.jit(partial(step, module))(variables(3, np.float32), x)
    assert y.dtype == dx.dtype == jnp.bfloat16
    assert mean.dtype == var.dtype == jnp.float32
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize("kind", ["images", "product"])
@pytest.mark.parametrize("groups", [None, [[0, 1]], [[0], [1]]])
def test_synchronised_across_devices(groups, kind):
    if jax.local_device_count() < 2:
        pytest.skip("needs two devices")
    shards = np.stack([images((3, 4, 5, 3)), images((3, 4, 5, 3), 5.0) * 3]).astype(np.float32)
    x, axes, channels = shards, 0, 3
    if kind == "product":
        x, channels = product((1, 3), dtype=np.float32)._replace(x=shards), 6
        axes = x._replace(x=0, kernel=None)
    state = variables(channels, np.float32)

    def run(module, wrap):
        call = partial(step, module, wrap=wrap)
        return jax.pmap(
            call, axis_name="devices", in_axes=(None, axes), devices=jax.local_devices()[:2]
        )(state, x)

    options: dict[str, Any] = dict(
        activation="relu6", axis_name="devices", axis_index_groups=groups
    )
    actual = run(BatchNorm(**options), lambda s: s)
    assert_close(actual, run(Reference(**options), nested), 2e-4)
    (_, (mean, _)), _ = actual
    assert np.allclose(mean[0], mean[1]) == (groups != [[0], [1]])


@pytest.mark.parametrize("kind", ["images", "product"])
def test_synchronised_equals_one_large_batch_in_float64(kind):
    if jax.local_device_count() < 2:
        pytest.skip("needs two devices")
    with jax.enable_x64(True):
        shards = np.stack([images((3, 4, 5, 3)), images((3, 4, 5, 3), 5.0) * 3])
        params, channels = {"kernel": product((1, 3)).kernel}, 6
        if kind == "images":
            params, channels = {}, 3
        state = variables(channels)
        params |= state["params"]
        weights = np.cos(np.arange(shards[..., 0].size * channels))
        weights = weights.reshape(*shards.shape[:-1], channels)

        def gradients(axis_name, x, weights):
            module = BatchNorm(activation="hard_swish", axis_name=axis_name, dtype=jnp.float64)

            def loss(params, x):
                own = {name: params[name] for name in state["params"]}
                y, _ = module.apply(
                    {**state, "params": own},
                    Product(x, params["kernel"]) if kind == "product" else x,
                    False,
                    mutable=["batch_stats"],
                )
                return jnp.sum(weights * jnp.sin(y))

            return jax.grad(loss, (0, 1))(params, x)

        together = gradients(None, shards.reshape(-1, 4, 5, 3), weights.reshape(-1, 4, 5, channels))
        dparams, dx = jax.pmap(
            partial(gradients, "d"), axis_name="d", devices=jax.local_devices()[:2]
        )(shards, weights)
        assert_close(dx.reshape(-1, 4, 5, 3), together[1])
        assert_close(jax.tree.map(lambda leaf: leaf.sum(0), dparams), together[0])


@pytest.mark.parametrize("kind", ["images", "product", "large"])
@pytest.mark.parametrize("activation", ["identity", "hard_swish"])
def test_second_derivatives(monkeypatch, activation, kind):
    if kind == "large":
        monkeypatch.setattr(normalization, "LOOP_BYTES", 0)
    with jax.enable_x64(True):
        x, state = images((2, 3, 4, 3)), variables(3)
        if kind == "product":
            x, state = product((2, 3, 4, 2)), variables(6)
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


@pytest.mark.parametrize("kind", ["images", "product", "large"])
def test_vmap_and_checkpoint(monkeypatch, kind):
    if kind == "large":
        monkeypatch.setattr(normalization, "LOOP_BYTES", 0)
    with jax.enable_x64(True):
        pair: list[Any] = [images((2, 3, 4, 3)), images((2, 3, 4, 3), 1.0)]
        state = variables(3)
        if kind == "product":
            pair, state = [product((2, 3, 4, 3)), product((2, 3, 4, 3), offset=1.0)], variables(6)
        module = BatchNorm(activation="relu6", dtype=jnp.float64)
        alone = jax.jit(partial(step, module))
        x = jax.tree.map(lambda *leaves: np.stack(leaves), *pair)
        mapped = jax.jit(jax.vmap(jax.checkpoint(lambda x: step(module, state, x))))(x)
        for i in range(2):
            assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), alone(state, pair[i]))


@pytest.mark.parametrize("use_running_average", [True, jnp.asarray(False)])
def test_a_product_is_for_training(use_running_average):
    with pytest.raises(ValueError, match="use_running_average must be False"):
        BatchNorm().apply(variables(6), product((2, 3, 4, 2)), use_running_average)


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation"):
        BatchNorm(activation="gelu").init(jax.random.key(0), jnp.ones((1, 2, 2, 3)), False)
