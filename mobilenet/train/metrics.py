"""Metrics: (sum, count) accumulators during training, exact tables from an evaluation."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def mean(accumulators: Iterable[Mapping[str, tuple[Any, Any]]]) -> dict[str, float]:
    """Means of metrics that are given as (sum, count) for several steps, summed in float64."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for step in accumulators:
        for name, (total, count) in step.items():
            sums[name] = sums.get(name, 0.0) + float(total)
            counts[name] = counts.get(name, 0.0) + float(count)
    return {name: sums[name] / counts[name] for name in sums}


# Bins of the expected calibration error (Guo et al. 2017, arXiv 1706.04599, section 2).
CALIBRATION_BINS = 15
# With at most this many classes top-5 is always 100 %, so it is not shown.
TRIVIAL_TOP5 = 5


def shows_top5(num_classes: int) -> bool:
    """Whether top-5 accuracy is informative with this many classes."""
    return num_classes > TRIVIAL_TOP5


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One row per evaluated example, sorted by index: independent of batch size and device count.

    Attributes:
      index: position in the split, int64 [N].
      label: int32 [N].
      loss: cross entropy in nats, float32 [N].
      top: the classes with the largest logits, best first, int32 [N, min(5, K)].
      num_classes: K.
      skipped: examples that could not be read, by index.
      logits: float32 [N, K]; None if they were not kept, as in training.
    """

    index: np.ndarray
    label: np.ndarray
    loss: np.ndarray
    top: np.ndarray
    num_classes: int
    skipped: Mapping[int, str] = dataclasses.field(default_factory=dict)
    logits: np.ndarray | None = None

    @property
    def top1(self) -> float:
        """Fraction whose label is the first class."""
        return float(np.mean(self.top[:, 0] == self.label))

    @property
    def top5(self) -> float:
        """Fraction whose label is among the first five classes (all of them for K <= 5)."""
        return float(np.mean(np.any(self.top == self.label[:, None], axis=1)))

    @property
    def shows_top5(self) -> bool:
        """Whether top-5 is informative: it is always 1 for five classes or fewer."""
        return shows_top5(self.num_classes)

    @functools.cached_property
    def confidence(self) -> np.ndarray | None:
        """Softmax probability of the first class, float64 [N]; None without logits."""
        if self.logits is None:
            return None
        chunks = (self.logits[i : i + 4096] for i in range(0, len(self.label), 4096))
        rows = (chunk.astype(np.float64) for chunk in chunks)
        return np.concatenate([1 / np.exp(r - r.max(1, keepdims=True)).sum(1) for r in rows])

    @property
    def calibration_error(self) -> float | None:
        """Expected calibration error in [0, 1], over equal-width bins; None without logits.

        ECE = sum over bins of (images of the bin / all images) * |accuracy - mean confidence|, with
        bin m of M holding confidences in ((m - 1) / M, m / M] (Guo et al. 2017, equation 3). Sums
        are rounded exactly, so the order of examples has no effect.
        """
        confidence = self.confidence
        if confidence is None:
            return None
        upper = np.arange(1, CALIBRATION_BINS + 1) / CALIBRATION_BINS
        bins = np.searchsorted(upper, confidence, side="left")
        gap = (self.top[:, 0] == self.label) - confidence
        gaps = [abs(math.fsum(gap[bins == m].tolist())) for m in range(CALIBRATION_BINS)]
        return math.fsum(gaps) / len(gap)

    @property
    def mean_loss(self) -> float:
        """Mean cross entropy, rounded exactly, so that the order of examples has no effect."""
        return math.fsum(self.loss.tolist()) / len(self.loss)

    def confusion_matrix(self) -> np.ndarray:
        """Counts [K, K]: row the label, column the predicted class."""
        matrix = np.zeros((self.num_classes, self.num_classes), np.int64)
        np.add.at(matrix, (self.label, self.top[:, 0]), 1)
        return matrix

    def per_class(self) -> dict[str, np.ndarray]:
        """Precision, recall, F1 (float64 [K]), support and predicted (int64 [K]) of each class.

        `support` counts the images of the class, `predicted` the images that the network assigns to
        it. A ratio without examples (a class never predicted, or absent) is 0, as in scikit-learn.
        With logits also `confidence`, the mean confidence over the images of the class. It is above
        the recall if the network is overconfident.
        """
        matrix = self.confusion_matrix()
        hits = np.diag(matrix).astype(np.float64)
        predicted, support = matrix.sum(0), matrix.sum(1)

        def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
            return np.divide(
                numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0
            )

        classes = {
            "precision": ratio(hits, predicted),
            "recall": ratio(hits, support),
            "f1": ratio(2 * hits, predicted + support),
            "support": support,
            "predicted": predicted,
        }
        if self.confidence is not None:
            sums = np.bincount(self.label, self.confidence, minlength=self.num_classes)
            classes["confidence"] = ratio(sums, support)
        return classes

    def summary(self) -> dict[str, Any]:
        """Top-1, top-5, mean loss, and the number of examples."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.mean_loss,
            "examples": len(self.label),
            "skipped": len(self.skipped),
        }


def gather(
    batches: Iterable[Mapping[str, np.ndarray]], num_classes: int, skipped: Mapping[int, str]
) -> Evaluation:
    """Builds an Evaluation from the outputs of evaluation steps, without the padding.

    Args:
      batches: dicts with `index`, `label`, `mask`, `loss` [B], `top` [B, k], perhaps `logits`
        [B, K].

    Raises:
      ValueError: there is no example, or an example occurs twice.
    """
    parts = [{k: np.asarray(v)[np.asarray(b["mask"]) > 0] for k, v in b.items()} for b in batches]
    if not parts or sum(len(part["index"]) for part in parts) == 0:
        raise ValueError("The evaluation had no example; the split is empty or fully unreadable.")
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.argsort(joined["index"], kind="stable")
    index = joined["index"][order].astype(np.int64)
    if len(np.unique(index)) != len(index):
        raise ValueError("An example was evaluated twice; the batches overlap.")
    return Evaluation(
        index=index,
        label=joined["label"][order],
        loss=joined["loss"][order],
        top=joined["top"][order],
        num_classes=num_classes,
        skipped=skipped,
        logits=joined["logits"][order] if "logits" in joined else None,
    )
