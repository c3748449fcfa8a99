"""Committed benchmark rows: complete and agreeing; the page and the plot from rows."""

import math
from pathlib import Path

import pytest

from mobilenet.report import benchmarks, rows
from mobilenet.report.pages import speed

ROOT = Path(__file__).parents[2]
ROWS = rows.read(ROOT / "experiments" / "results" / "benchmark.csv")
CASES = sorted({row["case"] for row in ROWS})


@pytest.mark.parametrize("case", CASES)
def test_rows_say_where_they_come_from_and_computed_the_same(case: str):
    mine = [row for row in ROWS if row["case"] == case]
    for processor in {row["processor"] for row in mine}:
        check_case([row for row in mine if row["processor"] == processor])


def check_case(rows: list[dict[str, str]]) -> None:
    assert rows[0]["implementation"] == "ours" and float(rows[0]["ratio"]) == 1
    for row in rows:
        assert row["device"] and row["processor"] and "jax=" in row["versions"]
        assert row["commit"] != "unknown" and not row["commit"].endswith("-dirty")
        assert int(row["rounds"]) >= 3
        assert float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"])
        same = 2e-3
        if row["implementation"] == "qat":
            # Rounds what the others compute; clipped to nothing it would guess among the classes.
            same = 5e-3
            assert all(abs(float(row["check"]) - math.log(k)) > 1e-5 for k in (10, 1000))
        assert float(row["check"]) == pytest.approx(float(rows[0]["check"]), rel=same)


def test_depthwise_docstrings_claim_holds_in_the_committed_rows():
    """`resolve_form`: a training step about 10 times as fast."""
    ratios = [
        float(r["ratio"]) for r in ROWS if r["implementation"] == "flax" and r["work"] == "train"
    ]
    assert ratios and min(ratios) >= 10


def test_the_page_and_the_plot_of_rows(tmp_path: Path):
    mine = [row for row in ROWS if row["case"] in ("train_224_plain", "evaluate_224_1")]
    # Ratios are of one machine: the same case of another one is another line.
    benchmarks.TABLE.add(tmp_path, [*mine, *({**row, "processor": "Other"} for row in mine)])
    text = speed.page(tmp_path).text()
    assert (
        text.count("| train, 224 px, batch 16 | 1.0 | 295 | plain Flax | 12.61 (12.25–13.38)") == 2
    )
    assert "implementations: Other" in text
    benchmarks.plot(ROWS, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    benchmarks.plot([], tmp_path / "empty.png")
