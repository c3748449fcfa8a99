"""Variants of an experiment: rows from run directories written here, and commits."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import write_run

from mobilenet import config as config_lib
from mobilenet import experiment
from mobilenet.analysis import stats
from mobilenet.cli import common
from mobilenet.cli.main import main
from mobilenet.report import rows, variants
from mobilenet.report.pages import blocks
from mobilenet.report.results import ResultError
from mobilenet.rundir import write_json
from mobilenet.sweep import space

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
COMMITTED = [
    (table, row)
    for table in variants.TABLES
    if (RESULTS / f"{table}.csv").exists()
    for row in rows.read(RESULTS / f"{table}.csv")
]
FLOAT: dict[str, Any] = {}
W8 = {"quantize.weights.bits": 8}
NAMED = {"float": FLOAT, "w8": W8}
EXPERIMENT = f"""
from mobilenet import config as base

def get_config(arg=""):
    return base.get_config(arg)

def variants(arg=""):
    return {NAMED!r}

def baselines(arg=""):
    return {{"w8": "float"}}
"""


CUT = {"pretrained": "runs/cut_{seed}"}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for seed in range(3):
        write_run(tmp_path / f"points/f{seed}", 0.5 + 0.02 * seed, FLOAT, seed)
    run = write_run(tmp_path / "points/w8", 0.455, W8)
    facts = {"float_bytes": 4_000, "weight_bytes": 1_000.0, "mean_bits": 8.0}
    write_json(run / "quantization.json", facts)
    return tmp_path


def make(variant: str, sweep: Path) -> dict[str, str]:
    runs = variants.find_runs(sweep / "points", NAMED)[variant]
    return variants.make_row(
        variant, runs, NAMED[variant], table="quantization", experiment="e", config="c.py"
    )


def test_several_runs_have_an_interval_over_seeds(sweep: Path):
    row = make("float", sweep)
    # 50, 52, 54 and t(2) = 4.3027: 4.3027 * 2 / sqrt(3) = 4.97.
    assert [row[k] for k in ("top1", "low", "high", "seeds", "interval")] == [
        "52.00", "47.03", "56.97", "0 1 2", "t over seeds",
    ]  # fmt: skip
    assert (row["mean_bits"], row["weight_bytes"], row["seconds_mean"]) == ("32", "1000000", "61")


def test_a_single_run_has_an_interval_over_images(sweep: Path):
    row = make("w8", sweep)
    low, high = stats.wilson(91, 200)
    assert (row["top1"], row["interval"]) == ("45.50", "Wilson over images")
    assert (row["low"], row["high"]) == (f"{100 * low:.2f}", f"{100 * high:.2f}")
    assert (row["mean_bits"], row["weight_bytes"]) == ("8", "1000")
    assert row["overrides"] == '{"quantize.weights.bits": 8}'


def test_variants_are_compared_seed_by_seed(tmp_path: Path):
    for seed, gain in enumerate((0.01, 0.02, 0.03)):
        write_run(tmp_path / f"f{seed}", 0.5 + 0.1 * seed, FLOAT, seed)
        write_run(tmp_path / f"c{seed}", 0.5 + 0.1 * seed + gain, CUT, seed)
    named = {"float": FLOAT, "cut": CUT}
    runs = variants.find_runs(tmp_path, named)
    assert [run.name for run in runs["cut"]] == ["c0", "c1", "c2"]

    def row(of: str, baseline: str) -> dict[str, str]:
        return variants.make_row(
            of, runs[of], named[of], table="quantization", experiment="e", config="c.py",
            baseline=baseline, others=runs[baseline],
        )  # fmt: skip

    better = row("cut", "float")
    # Gains of 1, 2 and 3 points: t(2) = 4.303, their deviation 1, so 2 +- 2.48.
    assert [better[f"difference{end}"] for end in ("", "_low", "_high")] == [
        "+2.00", "-0.48", "+4.48",
    ]  # fmt: skip
    assert blocks.verdict(better) == "inconclusive"
    for run in runs["cut"]:
        summary = json.loads((run / "summary.json").read_text())
        summary["test"]["top1"] += 0.1
        write_json(run / "summary.json", summary)
    better, worse = row("cut", "float"), row("float", "cut")
    assert blocks.difference(better) == "+12.00 [+9.52, +14.48]"
    assert (blocks.verdict(better), blocks.verdict(worse)) == ("higher", "lower")


def test_unknown_and_disjoint_variants_are_not_compared(sweep: Path, tmp_path: Path):
    def add(**baselines: str) -> None:
        variants.add(
            tmp_path / "r", "quantization", "e", sweep, NAMED, config="c.py", baselines=baselines
        )

    with pytest.raises(
        ResultError, match="baselines\\(\\) names the variant 'w9'; variants are float, w8"
    ):
        add(w8="w9")
    config = json.loads((sweep / "points/w8/config.json").read_text())
    write_json(sweep / "points/w8/config.json", {**config, "seed": 7})
    with pytest.raises(ResultError, match="The variants have no seed in common"):
        add(w8="float")


def test_variants_without_finished_runs_are_refused(sweep: Path):
    with pytest.raises(ResultError, match="no run of the variant 'w4'; finish the sweep"):
        variants.find_runs(sweep / "points", {**NAMED, "w4": {"quantize.weights.bits": 4}})
    summary = json.loads((sweep / "points/w8/summary.json").read_text())
    write_json(sweep / "points/w8/summary.json", {**summary, "status": "interrupted"})
    with pytest.raises(ResultError, match="w8 is interrupted, not done"):
        variants.find_runs(sweep / "points", NAMED)


def test_runs_of_two_sweeps_are_not_mixed(tmp_path: Path):
    def write(name: str, start: str, overrides: dict[str, Any], seed: int) -> Path:
        run = write_run(tmp_path / name, 0.5, overrides, seed)
        config = json.loads((run / "config.json").read_text())
        write_json(run / "config.json", {**config, "pretrained": "runs/parent"})
        write_json(run / "identity.json", {"pretrained": start})
        return run

    one = write("one", "a", FLOAT, 0)
    write("w8", "a", W8, 0)
    assert variants.find_runs(tmp_path, NAMED)["float"] == [one]
    # The same path, another network there: two candidates for one variant.
    two = write("two", "b", FLOAT, 0)
    with pytest.raises(ResultError, match=f"{one} and {two}, which differ in pretrained"):
        variants.find_runs(tmp_path, NAMED)
    # Or a seed of one sweep and a seed of the other.
    (one / "config.json").write_text((two / "config.json").read_text())
    write_json(two / "point.json", {"overrides": {"seed": 1}, "error": None})
    with pytest.raises(ResultError, match="differ in pretrained .'a', 'b'."):
        variants.find_runs(tmp_path, NAMED)


def test_runs_that_are_not_one_experiment_are_refused(sweep: Path):
    runs = [sweep / "points/f0", sweep / "points/f1"]
    summary = json.loads((runs[1] / "summary.json").read_text())
    write_json(runs[1] / "summary.json", {**summary, "commit": "other"})
    with pytest.raises(ResultError, match="differ in commit: abc, other"):
        variants.make_row("float", runs, {}, table="quantization", experiment="e", config="c.py")
    del summary["test"]
    write_json(runs[1] / "summary.json", summary)
    with pytest.raises(ResultError, match="no test metrics"):
        variants.make_row("float", runs, {}, table="quantization", experiment="e", config="c.py")


def test_report_commits_logs_rows_and_the_table(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "checkout"
    (root / "experiments/results").mkdir(parents=True)
    file = tmp_path / "named.py"
    file.write_text(EXPERIMENT)
    flags = ["quantization", str(sweep), f"--root={root}", "--row=mine"]
    for _ in range(2):  # again: rows are replaced
        assert main(["report", *flags, f"--config={file}", "--remarks=three images"]) == 0
    assert "2 variants of" in capsys.readouterr().out
    found = rows.read(root / "experiments/results/quantization.csv")
    assert [row["variant"] for row in found] == ["float", "w8"]
    page = (root / "experiments/results/quantization.md").read_text()
    assert "| float | 52.00 [47.03, 56.97] | – | – | – |" in page
    # Of one seed; the float run of that seed is at 50 %.
    assert "| w8 | 45.50 [38.75, 52.42] | float | -4.50 |" in page
    assert "- Three images." in page
    logs = root / "experiments/results/logs/quantization/mine"
    assert sorted(path.name for path in logs.iterdir()) == ["f0", "f1", "f2", "w8"]
    assert json.loads((logs / "w8/config.json").read_text())["data"]["data_dir"] == ""
    assert (logs / "w8/quantization.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--row=a/b"], "a/b"),
        (["--row=a", "--scale=cifar"], "--scale is no flag of quantization, which takes --row and"),
        ([], "--row is missing; for example --row=digits"),
    ],
)
def test_report_refuses(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
):
    (tmp_path / "experiments/results").mkdir(parents=True)
    file = tmp_path / "named.py"
    file.write_text(EXPERIMENT)
    given = ["quantization", str(sweep), f"--root={tmp_path}", f"--config={file}", *flags]
    assert main(["report", *given]) == 2
    assert message in capsys.readouterr().err


# ---- what is committed


@pytest.mark.parametrize(
    ("table", "row"), COMMITTED, ids=lambda v: v if isinstance(v, str) else v["variant"]
)
def test_rows_follow_from_their_logs(table: str, row: dict[str, str]):
    named = experiment.load_module(str(ROOT / row["config"])).variants(
        row["config"].partition(":")[2]
    )
    found = variants.find_runs(RESULTS / row["logs"], {row["variant"]: named[row["variant"]]})
    changes = json.dumps(named[row["variant"]])
    baseline = row["baseline"]
    others = {baseline: named[baseline]} if baseline else {}
    again = variants.make_row(
        row["variant"],
        found[row["variant"]],
        named[row["variant"]],
        baseline=baseline,
        others=variants.find_runs(RESULTS / row["logs"], others).get(baseline, ()),
        table=table,
        experiment=row["experiment"],
        config=row["config"],
        common=row["overrides"].removesuffix(changes if named[row["variant"]] else "").strip(),
        logs=row["logs"],
        remarks=row["remarks"],
    )
    assert again == row
    assert row["commit"] != "unknown" and not row["commit"].endswith("-dirty")


@pytest.mark.parametrize(
    ("table", "row"), COMMITTED, ids=lambda v: v if isinstance(v, str) else v["variant"]
)
def test_logged_configurations_are_what_the_files_say(table: str, row: dict[str, str]):
    variant = experiment.load_module(str(ROOT / row["config"])).variants(
        row["config"].partition(":")[2]
    )[row["variant"]]
    text = row["overrides"].removesuffix(json.dumps(variant) if variant else "").strip()
    _, overrides = common.split_overrides(text.split())
    for run in variants.find_runs(RESULTS / row["logs"], {row["variant"]: variant})[row["variant"]]:
        got = config_lib.from_json((run / "config.json").read_text())
        expected = experiment.load_config(str(ROOT / row["config"]), overrides)
        config_lib.update(expected, space.filled({**variant, "seed": got.seed}, got.seed))
        if expected.pretrained:
            # What came with the weights is in the log, of weights before they were equalised.
            source = got.copy_and_resolve_references()
            config_lib.update(source, {"quantize.equalize": False})
            config_lib.inherit(expected, source)
        for config in (got, expected):
            config_lib.update(config, {"data.data_dir": "", "quantize.calibration_dir": ""})
        assert config_lib.to_json(got) == config_lib.to_json(expected)
