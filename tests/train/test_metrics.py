"""Metrics against scikit-learn and by hand; losses against their definitions."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as reference

from mobilenet.train import losses, metrics


def batch(index: list[int], mask: list[int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    size = len(index)
    return {
        "index": np.array(index, np.int32),
        "label": np.array(index, np.int32) % 4,
        "mask": np.array(mask, np.float32),
        "loss": rng.uniform(size=size).astype(np.float32),
        "top": np.stack([rng.permutation(4)[:4] for _ in range(size)]).astype(np.int32),
    }


def test_means_weigh_steps_by_their_counts():
    steps = [{"loss": (2.0, 2.0)}, {"loss": (9.0, 1.0)}]
    assert metrics.mean(steps) == {"loss": 11.0 / 3.0}


def test_gather_drops_padding_and_sorts():
    rng = np.random.default_rng(0)
    first, second = batch([2, 0, 1], [1, 1, 1], rng), batch([3, 0, 0], [1, 0, 0], rng)
    got = metrics.gather([first, second], 4, {})
    np.testing.assert_array_equal(got.index, [0, 1, 2, 3])
    np.testing.assert_array_equal(got.loss, [*first["loss"][[1, 2, 0]], second["loss"][0]])


def test_gather_refuses_repeats_and_nothing():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="evaluated twice"):
        metrics.gather([batch([0, 0], [1, 1], rng)], 4, {})
    with pytest.raises(ValueError, match="saw no example"):
        metrics.gather([batch([0, 1], [0, 0], rng)], 4, {})


def test_tables_equal_scikit_learn():
    rng = np.random.default_rng(1)
    label = rng.integers(0, 6, 300).astype(np.int32)
    logits = rng.normal(size=(300, 7)) + 2 * np.eye(7)[label]
    logits[:, 6] = -9  # a class that is neither predicted nor present
    top = np.argsort(-logits, axis=1)[:, :5].astype(np.int32)
    got = metrics.Evaluation(np.arange(300), label, np.ones(300, np.float32), top, 7)
    assert got.top1 == reference.accuracy_score(label, top[:, 0])
    assert got.top5 == reference.top_k_accuracy_score(label, logits, k=5, labels=range(7))
    np.testing.assert_array_equal(
        got.confusion_matrix(), reference.confusion_matrix(label, top[:, 0], labels=range(7))
    )
    zero: Any = 0
    precision, recall, f1, support = reference.precision_recall_fscore_support(
        label, top[:, 0], labels=range(7), zero_division=zero
    )
    classes = got.per_class()
    np.testing.assert_allclose(classes["precision"], precision)
    np.testing.assert_allclose(classes["recall"], recall)
    np.testing.assert_allclose(classes["f1"], f1)
    np.testing.assert_array_equal(classes["support"], support)


def test_cross_entropy_and_smoothing_by_hand():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1]]))
    target = jnp.array([[1.0, 0.0, 0.0]])
    np.testing.assert_allclose(losses.cross_entropy(logits, target), [-np.log(0.7)], rtol=1e-6)
    smoothed = losses.smooth(target, 0.3)
    np.testing.assert_allclose(smoothed, [[0.8, 0.1, 0.1]], rtol=1e-6)
    expected = -(0.8 * np.log(0.7) + 0.1 * np.log(0.2) + 0.1 * np.log(0.1))
    np.testing.assert_allclose(losses.cross_entropy(logits, smoothed), [expected], rtol=1e-6)
