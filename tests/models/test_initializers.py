"""Initial values: the same bits everywhere, with the stated moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet.models.initializers import INITIALIZERS, normal


def test_same_bits_eagerly_under_jit_and_under_vmap():
    draw = INITIALIZERS["he_fan_out"]
    keys = jax.random.split(jax.random.key(3), 2)
    eager = np.stack([draw(key, (3, 3, 4, 8)) for key in keys])
    jitted = np.stack([jax.jit(lambda k: draw(k, (3, 3, 4, 8)))(key) for key in keys])
    mapped = jax.vmap(lambda k: draw(k, (3, 3, 4, 8)))(keys)
    np.testing.assert_array_equal(eager, jitted)
    np.testing.assert_array_equal(eager, mapped)
    assert not np.array_equal(eager[0], eager[1])


def test_golden_values_survive_numpy_releases():
    # Written down from the first run; a change would silently change every experiment.
    got = np.asarray(normal(1.0)(jax.random.key(0), (4,)))
    np.testing.assert_array_equal(got, np.array(GOLDEN, np.float32))


GOLDEN = [-2.2718842029571533, -0.701327919960022, -1.2189801931381226, 0.16217155754566193]


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("he_fan_out", (2 / (9 * 64)) ** 0.5),
        ("he_fan_in", (2 / (9 * 32)) ** 0.5),
        ("lecun_fan_in", (1 / (9 * 32)) ** 0.5),
    ],
)
def test_standard_deviations(name: str, std: float):
    values = np.asarray(INITIALIZERS[name](jax.random.key(1), (3, 3, 32, 64)))
    assert values.dtype == np.float32
    assert abs(values.std() / std - 1) < 0.02
    assert abs(values.mean()) < 0.03 * std


def test_slim_is_truncated_at_two_deviations():
    values = np.asarray(INITIALIZERS["slim"](jax.random.key(1), (3, 3, 32, 64)))
    assert np.abs(values).max() <= 0.18
    assert 0.075 < values.std() < 0.082  # 0.09 x 0.88, the deviation left by the truncation


def test_old_style_keys_work():
    old = jax.random.PRNGKey(5)
    np.testing.assert_array_equal(
        normal(1.0)(old, (3,), jnp.float32), normal(1.0)(jax.random.wrap_key_data(old), (3,))
    )
