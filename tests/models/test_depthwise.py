"""The shifted depthwise convolution against XLA's grouped one."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet.models import depthwise
from mobilenet.models.depthwise import depthwise_conv, resolve_form, resolve_padding

# shape, window, strides, padding, dilation
GRID = [
    ((2, 7, 9, 5), (3, 3), 1, "SAME", 1),
    ((2, 8, 9, 12), (3, 3), 2, "SAME", 1),
    ((1, 9, 8, 3), (3, 3), 2, "SYMMETRIC", 1),
    ((3, 1, 1, 4), (3, 3), 2, "SAME", 1),
    ((2, 1, 1, 8), (3, 3), 1, "SYMMETRIC", 1),
    ((2, 22, 6, 3), (5, 5), 2, "SYMMETRIC", 2),
    ((1, 11, 13, 2), (5, 3), 1, "SAME", 2),
    ((2, 6, 7, 4), (2, 2), 2, "SAME", 1),
    ((2, 7, 6, 4), (4, 2), 1, "SYMMETRIC", 1),
    ((1, 5, 6, 3), (4, 4), 1, ((0, 3), (2, 0)), 1),
    ((1, 5, 6, 3), (3, 3), 1, ((4, 0), (0, 2)), 1),  # wider than the window reaches
    ((1, 5, 6, 3), (3, 3), 1, ((0, 2), (1, 3)), 1),
    ((2, 9, 9, 3), (3, 3), 2, ((0, 0), (0, 0)), 1),
    ((2, 8, 7, 3), (1, 1), 2, "SAME", 1),
    ((1, 22, 5, 2), (7, 7), 2, "SAME", 1),
    ((2, 9, 8, 3), (3, 3), 1, "SAME", 3),
    ((1, 14, 11, 2), (3, 5), 2, "SYMMETRIC", 3),
    ((2, 5, 6, 3), (3, 3), 1, "SAME", 4),  # the window is larger than the image
    ((1, 13, 12, 2), (3, 3), 2, ((4, 3), (2, 5)), 4),
]


def operands(shape, window, dtype: Any = np.float64, seed=0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    return (
        random.standard_normal(shape).astype(dtype),
        random.standard_normal((*window, 1, shape[-1])).astype(dtype),
    )


def forward_and_gradients(x, kernel, form, **options):
    """y, dx and dk for the cotangent sin(index), in one compiled program."""

    @jax.jit
    def run(x, kernel):
        y, pull = jax.vjp(lambda x, k: depthwise_conv(x, k, form=form, **options), x, kernel)
        g = jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return y, *pull(g)

    return run(x, kernel)


@pytest.mark.parametrize(("shape", "window", "strides", "padding", "dilation"), GRID)
def test_equals_grouped_convolution_in_float64(shape, window, strides, padding, dilation):
    options: dict[str, Any] = dict(strides=strides, padding=padding, dilation=dilation)
    with jax.enable_x64(True):
        x, kernel = operands(shape, window)
        expected = forward_and_gradients(x, kernel, "grouped", **options)
        actual = forward_and_gradients(x, kernel, "shifted", **options)
        for a, b in zip(actual, expected, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_agrees_with_the_sum_that_defines_it():
    x, kernel = operands((2, 6, 5, 3), (3, 3))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((2, 3, 3, 3))
    for h in range(3):
        for w in range(3):
            window = padded[:, 2 * h : 2 * h + 3, 2 * w : 2 * w + 3]
            expected[:, h, w] = (window * kernel[:, :, 0]).sum((1, 2))
    with jax.enable_x64(True):
        actual = depthwise_conv(x, kernel, strides=2, padding="SYMMETRIC", form="shifted")
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


def test_half_precision_accumulates_in_float32():
    # 1 + 15 * 2^-9 needs bits that bfloat16 does not keep: summed in bfloat16 it stays 1.
    x = jnp.ones((1, 4, 4, 1), jnp.bfloat16)
    kernel = jnp.full((4, 4, 1, 1), 2.0**-9, jnp.bfloat16).at[0, 0].set(1)
    y = depthwise_conv(x, kernel, padding=((0, 0), (0, 0)), form="shifted")
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 0, 0, 0]) == float(jnp.bfloat16(1 + 15 * 2.0**-9))

    # The filter gradient adds 300 pixels: bfloat16 cannot count past 256.
    x = jnp.ones((3, 10, 10, 2), jnp.bfloat16)
    kernel = jnp.ones((1, 1, 1, 2), jnp.bfloat16)

    @jax.jit
    def gradients(x, kernel):
        y, pull = jax.vjp(partial(depthwise_conv, form="shifted"), x, kernel)
        return pull(jnp.ones_like(y))

    dx, dk = gradients(x, kernel)
    assert dx.dtype == dk.dtype == jnp.bfloat16
    np.testing.assert_array_equal(dk.ravel(), 300)


@pytest.mark.parametrize("strides", [1, 2])
def test_second_derivatives(strides):
    with jax.enable_x64(True):
        point = operands((2, 2, 5, 3), (2, 3))
        direction = operands((2, 2, 5, 3), (2, 3), seed=1)

        def products(form, remat):
            call = partial(depthwise_conv, strides=strides, form=form)
            call = jax.checkpoint(call) if remat else call

            def loss(x, kernel):
                return jnp.sum(jnp.sin(call(x, kernel)))

            gradient = jax.grad(loss, (0, 1))

            def along(x, kernel):
                pairs = zip(gradient(x, kernel), direction, strict=True)
                return sum(jnp.vdot(a, b) for a, b in pairs)

            @jax.jit
            def run(point, direction):
                forward_over_reverse = jax.jvp(gradient, point, direction)[1]
                return forward_over_reverse, jax.grad(along, (0, 1))(*point)

            return run(point, direction)

        expected = products("grouped", remat=False)
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10),
            products("shifted", remat=strides == 2),
            expected,
        )


def test_vmap_over_images_and_kernels():
    with jax.enable_x64(True):
        x, kernel = (
            np.stack(pair)
            for pair in zip(
                operands((2, 5, 6, 3), (3, 3)), operands((2, 5, 6, 3), (3, 3), seed=1), strict=True
            )
        )

        def gradients(form):
            def loss(x, kernel):
                return jnp.sum(jnp.sin(depthwise_conv(x, kernel, strides=2, form=form)))

            return jax.jit(jax.vmap(jax.grad(loss, (0, 1))))(x, kernel)

        for a, b in zip(gradients("shifted"), gradients("grouped"), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def test_pmap_equals_each_device_alone():
    devices = jax.local_device_count()
    x, kernel = operands((2 * devices, 5, 6, 3), (3, 3), np.float32)

    @jax.jit
    def gradients(x, kernel):
        return jax.grad(
            lambda x, k: jnp.sum(jnp.sin(depthwise_conv(x, k, form="shifted"))), (0, 1)
        )(x, kernel)

    shards = x.reshape(devices, 2, *x.shape[1:])
    dx, dk = jax.pmap(gradients, in_axes=(0, None))(shards, kernel)
    for i in range(devices):
        expected = gradients(shards[i], kernel)
        np.testing.assert_allclose(dx[i], expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(dk[i], expected[1], rtol=1e-5, atol=1e-5)


def grouped_convolutions(text):
    counts = re.findall(r"(?:feature|batch)_group_count\s*=\s*(\d+)", text)
    return [count for count in counts if int(count) > 1]


@pytest.mark.parametrize("strides", [1, 2])
def test_no_grouped_convolution_is_compiled(strides):
    x, kernel = operands((2, 8, 8, 6), (3, 3), np.float32)

    def programs(form):
        def run(x, kernel):
            call = partial(depthwise_conv, strides=strides, form=form)
            y, pull = jax.vjp(call, x, kernel)
            return y, *pull(y)

        lowered = jax.jit(run).lower(x, kernel)
        return lowered.as_text(), str(lowered.compile().as_text())

    for text in programs("shifted"):
        assert not grouped_convolutions(text)
        assert not re.search(r"stablehlo\.convolution| convolution\(", text)
    assert grouped_convolutions(programs("grouped")[0]), "the search itself must be able to find"


def test_auto_is_shifted_on_cpu_and_grouped_elsewhere(monkeypatch):
    assert jax.default_backend() != "cpu" or resolve_form("auto") == "shifted"
    monkeypatch.setattr(depthwise.jax, "default_backend", lambda: "gpu")
    assert resolve_form("auto") == "grouped"
    assert resolve_form("shifted") == "shifted"


def test_padding_matches_the_published_conventions():
    # TensorFlow puts the odd pixel of an even image at the end; PyTorch pads both sides alike.
    assert resolve_padding("SAME", (224, 113), (3, 3), 2, 1) == ((0, 1), (1, 1))
    assert resolve_padding("SYMMETRIC", (224, 113), (3, 3), 2, 1) == ((1, 1), (1, 1))
    assert resolve_padding("SYMMETRIC", (8, 8), (5, 3), 1, 2) == ((4, 4), (2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(strides=3), "strides"),
        (dict(dilation=0), "dilation"),
        (dict(form="fast"), "form"),
        (dict(padding="VALID"), "padding"),
        (dict(padding=((0, 0), (-2, 0))), "does not fit"),
    ],
)
def test_readable_errors(options, message):
    x, kernel = operands((1, 4, 4, 2), (3, 3), np.float32)
    with pytest.raises(ValueError, match=message):
        depthwise_conv(x, kernel, **options)


def test_kernel_must_match_channels():
    x, kernel = operands((1, 4, 4, 2), (3, 3), np.float32)
    with pytest.raises(ValueError, match="kernel"):
        depthwise_conv(x[..., :1], kernel)
