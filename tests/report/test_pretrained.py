"""Rows about other projects' weights: made from evaluations, and what is committed."""

import json
from pathlib import Path
from typing import Any

import pytest
import scipy.stats

from mobilenet.report import pretrained, rows
from mobilenet.report.results import ResultError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"


def evaluation(directory: Path, **changes: Any) -> Path:
    found = {
        "top1": 0.915, "top5": 0.995, "examples": 200, "overrides": {"data.name": "folder"},
        "device": "1 x cpu", "processor": "x", "versions": {"jax": "1"}, "commit": "abc", **changes,
    }  # fmt: skip
    path = directory / "evaluation_test_0.json"
    path.write_text(json.dumps(found))
    (directory / "summary.json").write_text(json.dumps({"source": "tflite a.tflite, sha256 0"}))
    return path


def test_a_row_has_the_weights_and_a_wilson_interval(tmp_path: Path):
    path = evaluation(tmp_path)
    row = pretrained.make_row("a", path, published_top1="92.5", published_source="its card")
    assert (row["top1"], row["top5"], row["examples"]) == ("91.50", "99.50", "200")
    interval = scipy.stats.binomtest(183, 200).proportion_ci(method="wilson")
    assert (row["low"], row["high"]) == tuple(f"{100 * end:.2f}" for end in interval)
    assert row["weights"] == "tflite a.tflite, sha256 0"
    (tmp_path / "results").mkdir()
    for top1 in (0.9, 0.915):
        made = pretrained.make_row("a", evaluation(tmp_path, top1=top1))
        pretrained.ACCURACY.add(tmp_path / "results", [made])
    assert [r["top1"] for r in rows.read(tmp_path / "results" / "pretrained.csv")] == ["91.50"]


def test_what_is_no_evaluation_of_converted_weights_is_refused(tmp_path: Path):
    path = evaluation(tmp_path)
    (tmp_path / "summary.json").write_text('{"status": "done"}')
    with pytest.raises(ResultError, match="is not a run that `mobilenet convert` made"):
        pretrained.make_row("a", path)
    path.write_text("{}")
    with pytest.raises(ResultError, match="is not an evaluation"):
        pretrained.make_row("a", path)


def test_committed_cases_are_complete_and_agree():
    cases = pretrained.PARITY.rows(RESULTS)
    assert pretrained.ACCURACY.rows(RESULTS) and len(cases) == 4 * 4 * 3
    assert all(float(row["max_abs_difference"]) <= 1e-4 for row in cases)
