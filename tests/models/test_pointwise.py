"""1x1 convolutions and the stem against XLA's convolution."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet.models.pointwise import conv


def operands(shape, window, outputs, dtype: Any = np.float64):
    random = np.random.default_rng(0)
    return (
        random.standard_normal(shape).astype(dtype),
        random.standard_normal((*window, shape[-1], outputs)).astype(dtype),
    )


def forward_and_gradients(x, kernel, form, **options):
    @jax.jit
    def run(x, kernel):
        y, pull = jax.vjp(lambda x, k: conv(x, k, form=form, **options), x, kernel)
        return y, *pull(jnp.sin(y))

    return run(x, kernel)


@pytest.mark.parametrize(
    ("shape", "window", "outputs", "strides", "padding"),
    [
        ((2, 5, 6, 7), (1, 1), 9, 1, "SAME"),
        ((1, 1, 1, 16), (1, 1), 3, 1, "SYMMETRIC"),
        ((2, 5, 6, 4), (1, 1), 5, 2, "SAME"),
        ((2, 4, 3, 4), (1, 1), 5, 1, ((1, 0), (0, 2))),
        ((2, 9, 8, 3), (3, 3), 8, 2, "SAME"),
        ((2, 8, 9, 3), (3, 3), 8, 2, "SYMMETRIC"),
        ((2, 7, 7, 1), (3, 3), 4, 1, "SAME"),
        ((1, 6, 7, 3), (5, 3), 4, 2, ((2, 2), (0, 1))),
        ((1, 6, 5, 20), (3, 3), 4, 1, "SAME"),
    ],
)
def test_equals_xla_convolution_in_float64(shape, window, outputs, strides, padding):
    with jax.enable_x64(True):
        x, kernel = operands(shape, window, outputs)
        options: dict[str, Any] = dict(strides=strides, padding=padding)
        expected = forward_and_gradients(x, kernel, "grouped", **options)
        actual = forward_and_gradients(x, kernel, "shifted", **options)
        for a, b in zip(actual, expected, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("window", "channels"), [((1, 1), 6), ((3, 3), 3)])
def test_fast_form_is_a_matrix_product_in_every_derivative(window, channels):
    x, kernel = operands((2, 6, 6, channels), window, 4, np.float32)

    def text(form):
        def run(x, kernel):
            y, pull = jax.vjp(lambda x, k: conv(x, k, form=form), x, kernel)
            return y, *pull(y)

        return jax.jit(run).lower(x, kernel).as_text()

    assert "stablehlo.convolution" not in text("shifted")
    assert "stablehlo.convolution" in text("grouped")


def test_half_precision_accumulates_in_float32():
    # bfloat16 cannot count past 256, and 1024 is one of its numbers.
    x = jnp.ones((1, 2, 2, 1024), jnp.bfloat16)
    y = conv(x, jnp.ones((1, 1, 1024, 2), jnp.bfloat16), form="shifted")
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y.astype(np.float32), 1024)


def test_hessian_vector_product():
    with jax.enable_x64(True):
        x, kernel = operands((2, 5, 4, 3), (3, 3), 4)

        def product(form):
            def loss(kernel):
                return jnp.sum(jnp.sin(conv(x, kernel, strides=2, form=form)))

            return jax.jit(lambda k, v: jax.jvp(jax.grad(loss), (k,), (v,))[1])(kernel, kernel**2)

        np.testing.assert_allclose(product("shifted"), product("grouped"), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 4, 4, 3), dict(form="fast"), "form"),
        ((1, 4, 4, 3), dict(padding="VALID"), "padding"),
        ((1, 4, 4, 2), {}, "channels"),
        ((1, 2, 4, 3), dict(padding=((0, 0), (0, 0))), "does not fit"),
    ],
)
def test_readable_errors(shape, options, message):
    with pytest.raises(ValueError, match=message):
        conv(jnp.ones(shape), jnp.ones((3, 3, 3, 2)), **options)
