"""What a teacher's answers do to the loss: by hand, at agreement, at a weight of 0."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet.compress import distill


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_the_soft_loss_by_hand():
    student, teacher = np.array([[1.0, 2.0, 0.0]]), np.array([[0.0, 3.0, 1.0]])
    p, q = softmax(teacher / 2), softmax(student / 2)
    expected = 4 * (p * (np.log(p) - np.log(q))).sum(-1)
    np.testing.assert_allclose(
        distill.soft_loss(
            jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32), 2.0
        ),
        expected,
        rtol=1e-5,
    )


def test_agreement_costs_nothing_and_the_gradients_scale_stays():
    logits = jnp.array([[0.5, -1.0, 2.0]])
    assert float(distill.soft_loss(logits, logits, 3.0)[0]) == pytest.approx(0, abs=1e-6)
    other = jnp.array([[0.1, 0.2, -0.1]])
    # At high temperatures the gradient is (z - v) / K whatever T is, of centred logits z and v.
    # (Hinton et al. 2015, equation 4, times T^2.)
    for temperature in (50.0, 500.0):
        found = jax.grad(lambda z, t=temperature: distill.soft_loss(z, other, t)[0])(logits)
        centred = [x - x.mean() for x in (logits, other)]
        np.testing.assert_allclose(found, (centred[0] - centred[1]) / 3, rtol=0.1, atol=0.02)


def test_attention_is_where_and_not_how_much():
    x = jnp.zeros((1, 2, 2, 3)).at[0, 0, 1].set(2.0).at[0, 1, 0].set(jnp.array([1.0, 0.0, 0.0]))
    energy = np.array([0.0, 4.0, 1 / 3, 0.0])
    np.testing.assert_allclose(
        distill.attention(x)[0], energy / math.sqrt((energy**2).sum()), rtol=1e-5
    )
    np.testing.assert_allclose(distill.attention(7 * x), distill.attention(x), rtol=1e-5)
    wider = jnp.concatenate([x, x], axis=-1)
    np.testing.assert_allclose(distill.attention(wider), distill.attention(x), rtol=1e-5)


def test_transfer_by_hand():
    a, b = jnp.ones((2, 1, 2, 1)), jnp.array([[[[1.0], [3.0]]], [[[2.0], [2.0]]]])
    features = distill.transfer_loss([a], [b], "features")
    np.testing.assert_allclose(features, [2 / 5, 1 / 4], rtol=1e-6)  # over the mean square of b
    attention = distill.transfer_loss([a, a], [b, a], "attention")
    own, other = np.array([1, 1]) / math.sqrt(2), np.array([1, 9]) / math.sqrt(82)
    np.testing.assert_allclose(attention, [((own - other) ** 2).sum() / 2, 0.0], atol=1e-6)


def test_maps_are_paired_by_resolution():
    student = {"stem": (1, 8, 8, 4), "stage_0": (1, 8, 8, 4), "stage_1": (1, 8, 8, 6),
               "stage_2": (1, 4, 4, 8), "head": (1, 4, 4, 9)}  # fmt: skip
    teacher = {"stage_0": (1, 16, 16, 4), "stage_1": (1, 8, 8, 6), "stage_2": (1, 4, 4, 16)}
    both = [("stage_1", "stage_1"), ("stage_2", "stage_2")]
    assert distill.pair_maps(student, teacher, "attention") == both
    assert distill.pair_maps(student, teacher, "features") == both[:1]
    assert distill.pair_maps(student, {"stage_0": (1, 3, 3, 4)}, "attention") == []


def test_the_guide_mixes_and_passes_no_gradient_to_the_teacher():
    images, logits = jnp.ones((2, 1, 1, 2)), jnp.array([[1.0, 0.0], [0.0, 2.0]])

    def teach(variables, images):
        return images[:, 0, 0] * variables, {"stage_0": images}

    guide = distill.make_guide(teach, "features", [("stage_0", "stage_0")])
    values = jnp.array([0.5, 1.5])

    def total(weight, transfer, variables):
        hyper = {"soft_weight": weight, "temperature": 2.0, "transfer_weight": transfer}
        return guide(values, (logits, {"stage_0": 3 * images}), images, hyper, variables)

    answers = jnp.array([1.0, 3.0])
    np.testing.assert_array_equal(total(0.0, 0.0, answers), values)
    soft = distill.soft_loss(logits, jnp.array([[1.0, 3.0]] * 2), 2.0)
    np.testing.assert_allclose(total(0.75, 0.5, answers), 0.25 * values + 0.75 * soft + 0.5 * 4.0)
    found = jax.grad(lambda v: total(0.75, 0.5, v).sum())(answers)
    np.testing.assert_array_equal(found, [0.0, 0.0])
