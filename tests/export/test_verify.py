"""How far a file's answers are from the run's, where that comes from, and when it is too far."""

from typing import Any

import numpy as np
import pytest

from mobilenet.cli import export
from mobilenet.export import verify


def test_differences_are_of_the_class_that_differs_most():
    ours = np.array([[0.0, 0.0], [0.0, np.log(3)]])
    theirs = np.array([[0.0, np.log(3)], [-0.5, np.log(3)]])
    found = verify.differences(theirs, ours)
    assert found["largest_logit"] == pytest.approx(np.log(3))
    assert found["logits"]["largest"] == pytest.approx(np.log(3))
    assert found["logits"]["mean"] == pytest.approx((np.log(3) + 0.5) / 2)
    # 1/2 to 3/4, and 3/4 to 3 / (3 + exp(-1/2)).
    apart = [0.25, 3 / (3 + np.exp(-0.5)) - 0.75]
    assert found["probabilities"]["mean"] == pytest.approx(np.mean(apart))
    assert found["probabilities"]["p99"] == pytest.approx(np.quantile(apart, 0.99))


def row(
    kind: str, logits: float = 0.0, mean: float = 0.0, largest: float = 0.0, **more: Any
) -> Any:
    return {
        "runtime": "r",
        "format": kind,
        "largest_logit": 10.0,
        "logits": {"mean": logits, "p99": logits, "largest": logits},
        "probabilities": {"mean": mean, "p99": largest, "largest": largest},
        **more,
    }


EQUAL, APART = {"conv": {"largest": 1}}, {"conv": {"largest": 2}}


@pytest.mark.parametrize(
    ("found", "integer", "cause", "warning"),
    [
        (row("onnx", 0.009), False, "sums in another order", ""),
        (row("onnx", 0.011), False, "a fault", "a logit differs by 0.011, but the order of sums"),
        (row("stablehlo", 0.011), False, "a fault", "only explains 0.01: the file is not"),
        (row("stablehlo", 0.011), True, "round to other codes in each layer", ""),
        (row("litert", executor=EQUAL), True, "rounding that grows over the layers: each", ""),
        (row("litert", executor=APART), True, "differs from the executor's: a fault", ""),
        (row("litert"), True, "kernels that round differently", ""),
        (row("onnx"), True, "compared one by one only in .tflite files", ""),
        (row("litert", 9, 0.05, 0.25, executor=EQUAL), True, "grows over the layers", ""),
        (row("onnx", 9, 0.06, 0.1), True, "rounding", "differ by 6.0 % on average and 10.0 %"),
        (row("onnx", 9, 0.01, 0.3), True, "rounding", "more than 5 and 25 %"),
    ],
)
def test_a_difference_has_a_cause_and_a_bound(found: Any, integer: bool, cause: str, warning: str):
    said, warned = verify.explain(found, integer=integer)
    assert cause in said
    assert warning in warned and bool(warning) == bool(warned)
    shown = export._differences({**found, "cause": said, "warning": warned})
    assert shown[0].endswith(f"cause: {said}")
    assert shown[1:] == ([f"WARNING: r: {warned}."] if warned else [])
