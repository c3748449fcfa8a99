"""What a sweep would do and what it has done, as tables that fit a terminal."""

import json
import re
from pathlib import Path

import pytest
from support import tiny, write_run

from mobilenet import rundir
from mobilenet.cli import sweep
from mobilenet.sweep import ledger, listing, points, runner, space
from mobilenet.sweep.points import Point

VARIANTS = {
    "without": {},
    "squeeze-and-excitation with a quarter of the channels in every block of the network": {
        "model.se_ratio": 0.25
    },
    "wide": {"model.width_multiplier": 2.0},
}
SE = list(VARIANTS)[1]


@pytest.fixture
def planned() -> list[Point]:
    changes = space.replicates(VARIANTS.values(), 3)
    return points.points_of(tiny(), changes, variants=VARIANTS, baselines={SE: "without"})


def finish(point: Point, workdir: Path, top1: float, **more: object) -> None:
    """Leaves the run directory of a finished point."""
    seed = point.config.seed
    write_run(point.directory(workdir), top1, point.overrides, seed, **more)


def fits(text: str) -> bool:
    return max(map(len, text.splitlines())) <= listing.WIDTH


def rows(text: str) -> dict[str, list[str]]:
    """First word of a line -> the others."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}


def test_results_are_means_with_intervals_inside_0_and_100(planned: list[Point], tmp_path: Path):
    for point, top1 in zip(planned[:3], (0.5, 0.6, 0.7), strict=True):
        finish(point, tmp_path, top1)
    for point, top1 in zip(planned[3:5], (0.97, 0.99), strict=True):
        finish(point, tmp_path, top1, validation={"top1": top1})
    failed = planned[5].directory(tmp_path)
    failed.mkdir(parents=True)
    (failed / "point.json").write_text('{"error": "ValueError: lost"}')
    (failed / "summary.json").write_text('{"status": "failed"}')
    finish(planned[6], tmp_path, 0.25)
    statuses = runner.statuses(planned, tmp_path)
    text = listing.results(planned, statuses, tmp_path)
    assert fits(text)
    found = rows(text)
    # Of 0.5, 0.6 and 0.7: t(2) is 4.3027, so 10 / sqrt(3) * 4.3027 is 24.84 on each side.
    assert found["without"] == ["3/3", "-", "60.00", "[35.16,", "84.84]", "61", "s"]
    assert "2/3" in text and "1 failed" in text
    assert "98.00 [85.29, 100.00]" in text
    assert found["wide"] == ["1/3", "-", "25.00", "60", "s"]


def test_a_split_that_no_run_has_has_no_column(planned: list[Point], tmp_path: Path):
    finish(planned[0], tmp_path, 0.5)
    text = listing.results(planned, runner.statuses(planned, tmp_path), tmp_path)
    assert "test top-1" in text and "validation" not in text


def test_a_dry_run_has_a_row_for_each_variant_and_says_what_is_left(
    planned: list[Point], tmp_path: Path
):
    text = listing.table(planned, tmp_path, "9 runs of an hour")
    assert fits(text)
    assert "9 runs of 3 variants: 0 done, 576 steps to train; 3 shapes to compile." in text
    assert "Cost, from the experiment file: 9 runs of an hour." in text
    # Two runs of one width took 60 and 61 s; the others are as large or larger.
    for point in planned[:2]:
        finish(point, tmp_path, 0.5)
    text = listing.table(planned, tmp_path, "9 runs of an hour")
    assert rows(text)["without"][0] == "2/3" and "hour" not in text
    assert "2 done" in text and "min for the rest" in text and "2 runs here took" in text
    for point in planned[2:]:
        finish(point, tmp_path, 0.5)
    text = listing.table(planned, tmp_path, "9 runs of an hour")
    assert "9 done, 0 steps to train" in text and "rest" not in text and "hour" not in text


def test_counts_are_words():
    (point,) = points.points_of(tiny(), [{}])
    assert "1 run of 1 variant: 0 done, 64 steps to train; 1 shape to" in listing.table(
        [point], Path("nowhere")
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (45, "45 s"), (100, "1.7 min"), (720, "12 min"), (5000, "83 min")]
    + [(12_600, "3.5 h"), (180_000, "2.1 days")],
)
def test_times_have_two_digits(seconds: float, text: str):
    assert listing.duration(seconds) == text


def test_a_sweep_ends_with_its_variants_and_the_next_command(
    planned: list[Point], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    workdir = tmp_path / "my runs"
    for point in planned:
        finish(point, workdir, 0.5)
    outcome = runner.Outcome(runner.statuses(planned, workdir))
    assert sweep.report(planned, outcome, workdir) == 0
    out = capsys.readouterr().out
    shown = out.splitlines()
    assert shown[2].startswith("without") and "9 runs: 9 done" in shown
    assert re.search(rf"next: mobilenet compare( \\\n +| )--workdir='{workdir}'\n$", out)
    # Without a finished run there is nothing to compare.
    nothing = runner.Outcome({point.key: "pending" for point in planned})
    sweep.report(planned, nothing, workdir, waited=False)
    assert "compare" not in capsys.readouterr().out


def test_names_are_kept_for_those_who_read_the_runs(planned: list[Point], tmp_path: Path):
    runner.register(planned, tmp_path)
    found = ledger.read(tmp_path)
    without, se = planned[0].group, planned[3].group
    assert found[without] == ledger.Variant("without", "")
    assert found[se] == ledger.Variant(SE, without)
    # Another experiment in the directory adds its own; a shared run takes the newer name.
    ledger.write(tmp_path, {without: ledger.Variant("baseline", ""), "x": ledger.Variant("x", "")})
    again = ledger.read(tmp_path)
    assert [each.name for each in again.values()] == ["baseline", SE, "wide", "x"]
    # A damaged file stops those who read it, and no sweep.
    for text in ("[3]", '[{"name": "a"}]', "{}", "["):
        (tmp_path / ledger.FILE).write_text(text)
        with pytest.raises(rundir.FileError, match="variants.json"):
            ledger.read(tmp_path)
    runner.register(planned, tmp_path)
    assert ledger.read(tmp_path) == found
    assert json.loads((tmp_path / ledger.FILE).read_text())[1] == {
        "group": se, "name": SE, "baseline": without,
    }  # fmt: skip
