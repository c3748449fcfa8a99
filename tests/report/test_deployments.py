"""Exported files and the integer executor as committed rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from mobilenet.analysis import stats
from mobilenet.cli.main import main
from mobilenet.report import deployments, rows
from mobilenet.report.results import ResultError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
COMMITTED = rows.read(RESULTS / "exports.csv")


def found(**changes: Any) -> dict[str, Any]:
    """A row as `mobilenet export --verify` writes it."""
    row: dict[str, Any] = {
        "file": "m.tflite", "format": "litert", "runtime": "litert (builtin)", "bytes": 1000,
        "weight_bits": 8, "activation_bits": 8, "split": "test", "examples": 200, "top1": 0.455,
        "top1_jax": 0.46, "agreement": 0.99, "latency_ms_min": 0.5, "latency_ms_median": 0.625,
        "latency_ms_p90": 1.0, "processor": "a processor", "versions": {"jax": "1.0"},
        "commit": "abc", "operations": {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 2},
        "executor": {
            "Convolution": {"values": 300, "equal": 1.0, "largest": 0},
            "Mean": {"values": 100, "equal": 0.98, "largest": 1},
        },
    }  # fmt: skip
    return row | changes


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "m.tflite.rows.json").write_text(json.dumps([found()]))
    other = found(file="m.onnx", format="onnx", runtime="onnxruntime", bytes=4000)
    del other["executor"], other["operations"]
    (folder / "m.onnx.rows.json").write_text(json.dumps([other]))
    return folder


def test_rows_hold_accuracy_codes_and_latency(exported: Path):
    onnx, lite = deployments.make_rows("e", list(exported.iterdir()))  # the largest first
    assert [onnx["file"], lite["file"]] == ["m.onnx", "m.tflite"]
    low, high = stats.wilson(91, 200)
    assert (lite["top1"], lite["low"], lite["high"]) == (
        "45.50", f"{100 * low:.2f}", f"{100 * high:.2f}",
    )  # fmt: skip
    assert (lite["equal_codes"], lite["largest"]) == ("0.995000", "1")  # of 300 and 100 codes
    assert (onnx["equal_codes"], onnx["largest"], onnx["operations"]) == ("", "", "")
    assert lite["operations"] == "CONV_2D=3 DEPTHWISE_CONV_2D=2"
    assert [lite[f"latency_ms_{name}"] for name in ("min", "median", "p90")] == [
        "0.500", "0.625", "1.000",
    ]  # fmt: skip


def test_report_commits_them(exported: Path, tmp_path: Path):
    root = tmp_path / "checkout"
    (root / "experiments/results").mkdir(parents=True)
    for _ in range(2):
        assert main(["report", "exports", str(exported), f"--root={root}", "--row=mine"]) == 0
    page = (root / "experiments/results/exports.md").read_text()
    assert "| m.tflite | litert (builtin) | 45.50 [" in page and "| 99.500 (1) |" in page
    assert page.count("| m.onnx |") == 1
    logs = root / "experiments/results/logs/exports/mine"
    assert sorted(path.name for path in logs.iterdir()) == [
        "m.onnx.rows.json", "m.tflite.rows.json",
    ]  # fmt: skip


def test_what_is_no_export_is_refused(tmp_path: Path):
    (tmp_path / "a.rows.json").write_text('[{"file": "a"}]')
    with pytest.raises(ResultError, match="a.rows.json is not what `mobilenet export --verify`"):
        deployments.make_rows("e", [tmp_path / "a.rows.json"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ResultError, match="empty has no .*rows.json"):
        deployments.add(tmp_path, "e", empty)
    with pytest.raises(ResultError, match="a/b"):
        deployments.add(tmp_path, "a/b", empty)


# ---- what is committed


def test_rows_follow_from_their_logs():
    for experiment in {row["experiment"] for row in COMMITTED}:
        mine = [row for row in COMMITTED if row["experiment"] == experiment]
        logs, remarks = mine[0]["logs"], mine[0]["remarks"]
        files = list((RESULTS / logs).iterdir())
        assert deployments.make_rows(experiment, files, logs=logs, remarks=remarks) == mine
        for row in mine:
            assert row["commit"] != "unknown" and not row["commit"].endswith("-dirty")


def test_integer_files_hold_the_executors_codes():
    for row in COMMITTED:
        assert row["largest"] in ("", "0", "1"), row["file"]


def test_somebody_elses_networks_are_classified_as_by_litert():
    networks = [
        row for row in rows.read(RESULTS / "integer_executor.csv") if row["part"] == "network"
    ]
    for row in networks:
        assert set(row) == set(deployments.EXECUTOR.fields) and int(row["images"]) == 200
        assert not row["commit"].endswith("-dirty")
        if row["kernels"] == row["rounding"] == "builtin":
            assert float(row["top1_agreement"]) >= 199 / 200, row["file"]
