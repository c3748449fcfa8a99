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
    with pytest.raises(ValueError, match="had no example"):
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


def test_calibration_error_by_hand():
    """Three of the 15 bins: (11/15, 12/15], (9/15, 10/15], and (8/15, 9/15] at its end."""
    confidence = [0.8, 0.75, 0.62, 0.6]
    correct = [True, False, True, False]
    logits = np.log(np.array([[c, 1 - c] for c in confidence]))
    label = np.array([0 if right else 1 for right in correct], np.int32)
    got = metrics.Evaluation(
        np.arange(4), label, np.ones(4, np.float32), np.array([[0, 1]] * 4, np.int32), 2, {}, logits
    )
    assert got.confidence is not None
    np.testing.assert_allclose(got.confidence, confidence)
    gaps = [abs(1 + 0 - 0.8 - 0.75), abs(1 - 0.62), abs(0 - 0.6)]
    assert got.calibration_error == pytest.approx(sum(gaps) / 4, abs=1e-12)
    classes = got.per_class()
    np.testing.assert_allclose(classes["confidence"], [(0.8 + 0.62) / 2, (0.75 + 0.6) / 2])
    assert classes["predicted"].tolist() == [4, 0]


@pytest.mark.parametrize(("confidence", "right", "expected"), [(1.0, 1, 0.0), (1.0, 0, 1.0)])
def test_calibration_error_at_the_ends(confidence: float, right: int, expected: float):
    logits = np.array([[100.0, -100.0]] * 3, np.float32)
    label = np.full(3, 1 - right, np.int32)
    top = np.array([[0, 1]] * 3, np.int32)
    got = metrics.Evaluation(np.arange(3), label, np.zeros(3, np.float32), top, 2, {}, logits)
    assert got.calibration_error == expected


def test_calibration_error_is_exact_over_any_batch_size():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(100, 4)).astype(np.float32)
    label = rng.integers(0, 4, 100).astype(np.int32)
    top = np.argsort(-logits, axis=1).astype(np.int32)

    def evaluated(size: int, order: np.ndarray) -> metrics.Evaluation:
        parts = [order[start : start + size] for start in range(0, 100, size)]
        rows = [
            {
                "index": i, "label": label[i], "mask": np.ones(len(i)), "top": top[i],
                "loss": np.zeros(len(i), np.float32), "logits": logits[i],
            }
            for i in parts
        ]  # fmt: skip
        return metrics.gather(rows, 4, {})

    found = [
        evaluated(size, order)
        for size, order in ((100, np.arange(100)), (7, np.arange(100)), (1, rng.permutation(100)))
    ]
    assert len({each.calibration_error for each in found}) == 1
    for each in found:
        np.testing.assert_array_equal(each.logits, logits)


def test_an_evaluation_without_logits_knows_no_confidence():
    top = np.array([[0, 1]], np.int32)
    got = metrics.Evaluation(np.arange(1), np.zeros(1, np.int32), np.zeros(1, np.float32), top, 2)
    assert got.confidence is None and got.calibration_error is None
    assert "confidence" not in got.per_class()


@pytest.mark.parametrize(("classes", "shown"), [(2, False), (5, False), (6, True)])
def test_top5_of_five_classes_says_nothing(classes: int, shown: bool):
    assert metrics.shows_top5(classes) == shown


def test_cross_entropy_and_smoothing_by_hand():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1]]))
    target = jnp.array([[1.0, 0.0, 0.0]])
    np.testing.assert_allclose(losses.cross_entropy(logits, target), [-np.log(0.7)], rtol=1e-6)
    smoothed = losses.smooth(target, 0.3)
    np.testing.assert_allclose(smoothed, [[0.8, 0.1, 0.1]], rtol=1e-6)
    expected = -(0.8 * np.log(0.7) + 0.1 * np.log(0.2) + 0.1 * np.log(0.1))
    np.testing.assert_allclose(losses.cross_entropy(logits, smoothed), [expected], rtol=1e-6)
