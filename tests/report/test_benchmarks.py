"""Committed benchmark rows: complete, agreeing, shown as they are; tables and plots from rows."""

import math
from pathlib import Path

import pytest

from mobilenet.report import benchmarks, results, rows

ROOT = Path(__file__).parents[2]
ROWS = rows.read(ROOT / "experiments" / "results" / "benchmark.csv")
CASES = sorted({row["case"] for row in ROWS})


def test_the_readme_shows_the_rows():
    readme = (ROOT / "README.md").read_text()
    table = benchmarks.markdown(ROWS)
    assert results.render(readme, {"benchmark": table}) == readme, "run `mobilenet report`"


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


def test_table_and_plot_of_rows(tmp_path: Path):
    rows = [row for row in ROWS if row["case"] in ("train_224_plain", "evaluate_224_1")]
    table = benchmarks.markdown(rows)
    assert "| train, 224 px | 1.0 | 16 |" in table and "| plain Flax |" in table
    # Ratios are of one machine: the same case of another one is another line.
    elsewhere = [{**row, "processor": "Other"} for row in rows]
    both = benchmarks.markdown([*rows, *elsewhere]).splitlines()
    assert both[2:] == [
        line
        for name in (rows[0]["processor"], "Other")
        for line in benchmarks.markdown([{**row, "processor": name} for row in rows]).splitlines()[
            2:
        ]
    ]
    benchmarks.plot(ROWS, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    benchmarks.plot([], tmp_path / "empty.png")
