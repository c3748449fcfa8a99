"""Quantisation arithmetic against numbers worked out by hand and the papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet.quantize import numerics


def fake(x, low, high, bits, **options):
    grid = numerics.make_grid(low, high, bits, **options)
    return np.asarray(numerics.fake_quantize(jnp.asarray(x, jnp.float32), grid))


def test_code_limits():
    assert [*map(float, numerics.code_limits(8, signed=True))] == [-128, 127]
    assert [*map(float, numerics.code_limits(8, signed=True, narrow=True))] == [-127, 127]
    assert [*map(float, numerics.code_limits(4, signed=False))] == [0, 15]
    assert [*map(float, numerics.code_limits(16, signed=True))] == [-32768, 32767]


def test_affine_grid_by_hand():
    """0 .. 6 in four bits: the step is 0.4, and 0.0 has the lowest code."""
    grid = numerics.make_grid(0.0, 6.0, 4, symmetric=False)
    assert float(grid.scale) == pytest.approx(0.4)
    assert float(grid.zero_point) == -8
    codes = numerics.to_codes(jnp.asarray([-1.0, 0.0, 0.59, 0.61, 6.0, 9.0]), grid)
    np.testing.assert_array_equal(codes, [-8, -8, -7, -6, 7, 7])


def test_affine_zero_is_exact_and_the_range_is_nudged():
    grid = numerics.make_grid(-0.37, 1.0, 8, symmetric=False)
    assert float(grid.zero_point) == round(-128 + 0.37 * 255 / 1.37)
    assert fake([0.0], -0.37, 1.0, 8, symmetric=False)[0] == 0.0
    # A range on one side of 0 is widened to it.
    assert fake([2.0], 2.0, 3.0, 8, symmetric=False)[0] == pytest.approx(2.0, abs=3 / 510)
    assert float(numerics.make_grid(-3.0, -2.0, 8, symmetric=False).zero_point) == 127


def test_ties_round_to_even():
    grid = numerics.Grid(jnp.float32(1), jnp.float32(0), jnp.float32(-8), jnp.float32(7))
    halves = jnp.asarray([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    np.testing.assert_array_equal(numerics.to_codes(halves, grid), [-2, -2, -0.0, 0, 2, 2])


@pytest.mark.parametrize("narrow, lowest", [(True, -7.0), (False, -8.0)])
def test_symmetric_grid(narrow, lowest):
    values = fake([-9.0, -7.0, 7.0], -7.0, 5.0, 4, symmetric=True, narrow=narrow)
    np.testing.assert_array_equal(values, [lowest, -7.0, 7.0])


def test_per_channel_grid_belongs_to_the_last_axis():
    low, high = np.asarray([-1, -100], np.float32), np.asarray([1, 100], np.float32)
    x = np.asarray([[0.3, 30.0], [0.01, 1.0]], np.float32)
    values = fake(x, low, high, 8, symmetric=True, narrow=True)
    np.testing.assert_allclose(values, np.round(x / (high / 127)) * (high / 127), rtol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_dead_channel_is_exact(symmetric):
    values = fake(np.zeros(3), 0.0, 0.0, 8, symmetric=symmetric)
    np.testing.assert_array_equal(values, 0.0)
    assert float(numerics.make_grid(0.0, 0.0, 8, symmetric=symmetric).scale) == 1.0


def test_error_is_at_most_half_a_step_inside_the_range():
    x = np.random.default_rng(0).uniform(-1.5, 2.5, 10_000).astype(np.float32)
    for bits in (2, 3, 4, 8, 12):
        step = float(numerics.make_grid(-1.5, 2.5, bits, symmetric=False).scale)
        inside = (x > -1.5 + step) & (x < 2.5 - step)  # the nudge moves the ends
        error = np.abs(fake(x, -1.5, 2.5, bits, symmetric=False) - x)[inside]
        assert error.max() <= step / 2 * (1 + 1e-5)
        assert error.max() > step / 2 * 0.98


def test_bits_are_data():
    """One compiled program serves every width."""
    traced = []

    @jax.jit
    def quantise(x, bits):
        traced.append(1)
        return numerics.fake_quantize(x, numerics.make_grid(-1.0, 1.0, bits, symmetric=True))

    x = jnp.linspace(-1, 1, 1001)
    counts = [len(np.unique(quantise(x, bits))) for bits in (2, 4, 8)]
    assert counts == [3, 15, 255] and len(traced) == 1


def test_straight_through_gradient():
    grid = numerics.make_grid(0.0, 6.0, 8, symmetric=False)
    x = jnp.asarray([-0.5, 0.3, 5.9, 6.5])
    gradient = jax.grad(lambda x: (numerics.fake_quantize(x, grid) * jnp.arange(1.0, 5)).sum())(x)
    np.testing.assert_array_equal(gradient, [0, 2, 3, 0])


def test_learned_step_gradient_is_lsqs_equation():
    """Esser et al. 2019, equation 3 and the gradient scale of section 2.2, number by number."""
    x, step, bits = jnp.asarray([-3.0, -0.55, 0.17, 0.5, 1.3, 4.0]), jnp.float32(0.4), 3
    low, high = -4, 3
    v = np.asarray(x, np.float64) / 0.4
    each = np.where(v <= low, low, np.where(v >= high, high, np.round(v) - v))
    gradient = jax.grad(lambda s: numerics.learned_step(x, s, bits, signed=True).sum())(step)
    np.testing.assert_allclose(gradient, each.sum() / np.sqrt(len(x) * high), rtol=1e-5)
    along = jax.grad(lambda x: numerics.learned_step(x, step, bits, signed=True).sum())(x)
    np.testing.assert_array_equal(along, [0, 1, 1, 1, 0, 0])


def test_learned_step_per_channel():
    x = jax.random.normal(jax.random.key(0), (5, 2))
    steps = jnp.asarray([0.1, 0.7])
    both = numerics.learned_step(x, steps, 4, signed=True, narrow=True)
    for channel in range(2):
        alone = numerics.learned_step(x[:, channel], steps[channel], 4, signed=True, narrow=True)
        np.testing.assert_allclose(both[:, channel], alone, rtol=1e-6)


def test_learned_offset_gradient():
    """LSQ+: clipped numbers carry the offset's whole gradient, the others none."""
    x, bits = jnp.asarray([-2.0, -0.5, 0.1, 0.9, 3.0]), 4
    step, offset = jnp.float32(0.1), jnp.float32(-0.7)

    def total(offset):
        return numerics.learned_step(x, step, bits, signed=False, offset=offset).sum()

    factor = 1 / np.sqrt(5 * 15)
    np.testing.assert_allclose(jax.grad(total)(offset), 3 * factor, rtol=1e-4)  # -2.0, 0.9, 3.0
    values = numerics.learned_step(x, step, bits, signed=False, offset=offset)
    np.testing.assert_allclose(values, [-0.7, -0.5, 0.1, 0.8, 0.8], atol=1e-6)


def test_pact_gradient_and_values():
    """Choi et al. 2018, equation 3: the clip gathers the gradient of what it clips."""
    x, clip = jnp.asarray([-1.0, 0.3, 1.1, 2.0, 5.0]), jnp.float32(2.0)
    np.testing.assert_allclose(
        numerics.learned_clip(x, clip, 4), [0, 2 / 15 * 2, 2 / 15 * 8, 2, 2], atol=1e-6
    )
    weights = jnp.asarray([1.0, 2.0, 4.0, 8.0, 16.0])
    by_x, by_clip = jax.grad(
        lambda x, clip: (weights * numerics.learned_clip(x, clip, 4)).sum(), argnums=(0, 1)
    )(x, clip)
    np.testing.assert_allclose(by_x, [0, 2, 4, 0, 0])
    np.testing.assert_allclose(by_clip, 24)


def test_scaled_gradients_leave_the_value_to_the_last_bit():
    x = jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.float32)
    for factor in (0.0123, 1.0, 31.7):
        np.testing.assert_array_equal(numerics.scale_gradient(x, factor), x)
        gradient = jax.grad(lambda x, f=factor: numerics.scale_gradient(x, f).sum())(x)
        np.testing.assert_allclose(gradient, factor, rtol=1e-6)


def test_learned_numbers_lie_on_the_grid_that_is_deployed():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(500, 3)), jnp.float32)
    cases = (
        (jnp.asarray([0.1, -0.03, 0.7]), {"signed": True, "narrow": True}),
        (jnp.float32(0.11), {"signed": False}),
        (jnp.float32(0.11), {"signed": False, "offset": jnp.float32(-1.3)}),
        (jnp.float32(0.11), {"signed": True, "offset": jnp.float32(0.4)}),  # 0 keeps its code
    )
    for step, options in cases:
        grid = numerics.learned_grid(step, 4, **options)
        expected = numerics.from_codes(numerics.to_codes(x, grid), grid)
        np.testing.assert_array_equal(numerics.learned_step(x, step, 4, **options), expected)
        assert float(numerics.learned_step(jnp.zeros(1), jnp.float32(0.1), 4, signed=True)[0]) == 0


def test_what_reaches_the_upper_end_counts_as_clipped():
    """Equation 3 says so, and a ReLU6 puts 6 out at many places; its zeros have a code."""

    def total(x, step):
        return numerics.learned_step(x, step, 4, signed=False, count=1).sum()

    x, step = jnp.asarray([0.0, 7.5, 15.0]), jnp.float32(1.0)
    by_x, by_step = jax.grad(total, argnums=(0, 1))(x, step)
    np.testing.assert_array_equal(by_x, [1, 1, 0])
    np.testing.assert_allclose(by_step, (0 + 0.5 + 15) / np.sqrt(15), rtol=1e-6)


def test_the_gradient_of_a_learned_step_does_not_depend_on_the_batchs_division():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5, 3)), jnp.float32)

    def gradient(x):  # of a mean over examples, as a loss is
        def loss(step):
            y = numerics.learned_step(x, step, 4, signed=True, count=x.size // x.shape[0])
            return jnp.square(y).sum() / len(x)

        return jax.grad(loss)(jnp.float32(0.3))

    parts = (gradient(x[:4]) + gradient(x[4:])) / 2
    np.testing.assert_allclose(gradient(x), parts, rtol=1e-5)


def test_pact_keeps_what_is_signed():
    x, clip = jnp.asarray([-3.0, -0.55, 0.3, 2.0, 5.0]), jnp.float32(2.0)
    values = numerics.learned_clip(x, clip, 4, low=jnp.float32(-1.1))
    step = 2 / 7  # codes -8 to 7
    np.testing.assert_allclose(values, [-8 * step, -2 * step, step, 2, 2], atol=1e-6)
    gradient = jax.grad(lambda x: numerics.learned_clip(x, clip, 4, low=-1.0).sum())(x + 0.01)
    np.testing.assert_array_equal(gradient, [0, 1, 1, 1, 0])


@pytest.mark.parametrize("low", [0.0, -1.1, -3.4])
def test_pact_clips_where_an_integer_runtime_does(low):
    x = jnp.linspace(-6, 6, 401)
    grid = numerics.clip_grid(jnp.float32(2.0), 4, low=jnp.float32(low))
    deployed = numerics.from_codes(numerics.to_codes(x, grid), grid)
    values = numerics.learned_clip(x, jnp.float32(2.0), 4, low=jnp.float32(low))
    np.testing.assert_allclose(values, deployed, atol=1e-6)
