"""What `mobilenet compare` prints: names of the sweep, and differences to baselines."""

from pathlib import Path

import pytest
from support import write_run

from mobilenet.report import comparison, comparison_text
from mobilenet.report.results import ResultError
from mobilenet.rundir import read_json, write_json
from mobilenet.sweep import ledger, points, space

VARIANTS = {
    "squeeze-and-excitation, a quarter": {"model.se_ratio": 0.25},
    "without": {},
    "wide": {"model.width_multiplier": 0.5},
}
SE = "squeeze-and-excitation, a quarter"
TOP1 = {SE: (0.55, 0.60, 0.62), "without": (0.5, 0.54, 0.58), "wide": (0.7,)}


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    """The directory of a sweep with finished runs, names and baselines."""
    from mobilenet import config as config_lib
    from mobilenet.sweep import runner

    changes = space.product(list(VARIANTS.values()), space.seeds(3))
    planned = points.points_of(
        config_lib.get_config(), changes, variants=VARIANTS, baselines={SE: "without"}
    )
    done = [p for p in planned if p.config.seed < len(TOP1[p.variant])]
    runner.register(done, tmp_path)
    for point in done:
        seed, directory = point.config.seed, point.directory(tmp_path)
        recorded = read_json(directory / "point.json")
        (directory / "point.json").unlink()
        directory.rmdir()
        write_run(directory, TOP1[point.variant][seed], VARIANTS[point.variant], seed)
        write_json(directory / "point.json", recorded)
    return tmp_path


def test_rows_have_the_names_and_the_order_of_the_sweep(swept: Path):
    found = comparison.load(swept)
    assert [row["network"] for row in found.rows] == list(VARIANTS)


def test_runs_of_no_sweep_are_named_by_their_network(tmp_path: Path):
    write_run(tmp_path / "a", 0.5, {"model.width_multiplier": 0.5})
    (row,) = comparison.load(tmp_path).rows
    assert row["network"] == "MobileNetV2 0.5"
    assert comparison_text.differences(tmp_path, [row], {"a": ("a",)}) == {}


def test_differences_are_paired_by_seed(swept: Path):
    found = comparison.load(swept)
    apart = comparison_text.differences(swept, found.rows, found.runs)
    (only,) = apart.values()
    assert list(apart) == [found.rows[0]["run"]] and only.baseline == "without"
    # Of 5, 6 and 4 points: t(2) is 4.3027, so the half width is 4.3027 / sqrt(3) = 2.484.
    assert only.interval.n == 3
    assert [round(v, 2) for v in (only.interval.mean, only.interval.low, only.interval.high)] == [
        5.0, 2.52, 7.48,
    ]  # fmt: skip
    text = comparison_text.text(found.rows, (), apart)
    assert max(map(len, text.splitlines())) <= 80
    assert "+5.00 [+2.52, +7.48]" in text and "paired by seed" in text
    assert "59.00 [50.04, 67.96]" in text
    wide = next(line for line in text.splitlines() if line.startswith("wide"))
    assert wide.split() == ["wide", "1", "70.00"]


def test_configurations_of_one_name_are_told_apart(swept: Path):
    """The file was changed between two sweeps, and its variants kept their names."""
    known = ledger.read(swept)
    ledger.write(swept, {group: ledger.Variant("same", "") for group in known})
    names = [row["network"] for row in comparison.load(swept).rows]
    assert len(set(names)) == 3 and all(name.startswith("same, ") for name in names)
    assert "se_ratio=0.25" in " ".join(names)


def test_a_damaged_file_of_names_is_named(swept: Path):
    (swept / ledger.FILE).write_text("[")
    with pytest.raises(ResultError, match=r"variants.json .*; delete it, and the sweep"):
        comparison.load(swept)
