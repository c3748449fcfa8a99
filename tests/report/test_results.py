"""Committed results: every row follows from its logs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mobilenet import experiment
from mobilenet.cli import common
from mobilenet.cli.main import main
from mobilenet.config import from_json, inherit, to_json, update
from mobilenet.report import results, rows

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
ROWS = [(name, row) for name, table in results.TABLES.items() for row in table.rows(RESULTS)]


def ids(value: Any) -> str:
    return value["row"] if isinstance(value, dict) else str(value)


def test_there_are_results():
    assert {row["row"] for _, row in ROWS} >= {"digits", "cifar10_w0.5_e4"}


@pytest.mark.parametrize(("table", "row"), ROWS, ids=ids)
def test_rows_follow_from_their_logs(table: str, row: dict[str, str]):
    runs = [RESULTS / row["logs"] / f"seed{seed}" for seed in row["seeds"].split()]
    again = results.make_row(
        row["row"],
        runs,
        config=row["config"],
        overrides=row["overrides"],
        published_top1=row["published_top1"],
        published_source=row["published_source"],
        remarks=row["remarks"],
        logs=row["logs"],
    )
    assert again == row
    assert row["commit"] != "unknown" and not row["commit"].endswith("-dirty")


@pytest.mark.parametrize(("table", "row"), ROWS, ids=ids)
def test_logged_configurations_are_what_the_files_say(table: str, row: dict[str, str]):
    _, overrides = common.split_overrides(row["overrides"].split())
    for seed in row["seeds"].split():
        logged = (RESULTS / row["logs"] / f"seed{seed}" / "config.json").read_text()
        got = from_json(logged)  # keys that came later have their defaults
        expected = experiment.load_config(str(ROOT / row["config"]), overrides)
        if expected.pretrained:
            inherit(expected, got)  # the weights are not here, what came with them is in the log
        update(expected, {"seed": int(seed), "data.data_dir": ""})
        assert to_json(got) == to_json(expected)


@pytest.mark.parametrize(("table", "row"), ROWS, ids=ids)
def test_logs_end_where_the_row_says(table: str, row: dict[str, str]):
    for seed in row["seeds"].split():
        folder = RESULTS / row["logs"] / f"seed{seed}"
        logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((folder / "summary.json").read_text())
        patience = from_json((folder / "config.json").read_text()).train.patience
        assert logged[-1]["step"] == summary["step"] <= summary["total_steps"]
        assert patience or summary["step"] == summary["total_steps"]
        result = summary["result_step"] if patience else summary["step"]
        validation = {r["step"]: r["top1"] for r in logged if r["split"] == "validation"}
        assert validation[result] == summary["validation"]["top1"]


def test_quickstart_claims_hold_in_the_committed_row():
    row = next(row for _, row in ROWS if row["row"] == "digits")
    assert float(row["top1_mean"]) >= 98.0 and len(row["seeds"].split()) >= 3
    assert float(row["first_step_seconds_max"]) <= 25.0
    assert float(row["seconds_mean"]) <= 90.0


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    target = tmp_path / "experiments" / "results"
    target.mkdir(parents=True)
    return tmp_path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    source = RESULTS / "logs" / "baselines" / "digits"
    shutil.copytree(source, tmp_path / "runs")
    return sorted((tmp_path / "runs").iterdir())


def test_report_makes_a_row_and_the_page(
    checkout: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]
):
    config = "experiments/baselines/digits.py"
    given = [f"--root={checkout}", "--row=mine", f"--config={config}"]
    assert main(["report", "baselines", *map(str, runs), *given]) == 0
    assert "mine: top-1" in capsys.readouterr().out
    row = rows.read(checkout / "experiments/results/baselines.csv")[0]
    page = (checkout / "experiments/results/baselines.md").read_text()
    assert f"| `mine` | {row['top1_mean']} [" in page and "100.00] | 3 |" in page
    assert (checkout / "experiments/results" / row["logs"] / "seed0" / "metrics.jsonl").exists()


def test_rows_refuse_what_is_not_one_experiment(runs: list[Path]):
    def edit(run: Path, file: str, **values: Any) -> None:
        path = run / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    with pytest.raises(results.ResultError, match="repeat a seed"):
        results.make_row("r", [runs[0], runs[0]], config="c")
    config = json.loads((runs[1] / "config.json").read_text())
    config["model"]["width_multiplier"] = 9.0
    edit(runs[1], "config.json", **config)
    with pytest.raises(results.ResultError, match="differ in model.width_multiplier"):
        results.make_row("r", runs, config="c")
    edit(runs[2], "summary.json", status="diverged")
    with pytest.raises(results.ResultError, match="is diverged, not done"):
        results.make_row("r", [runs[0], runs[2]], config="c")


def test_row_names_name_folders(checkout: Path, runs: list[Path]):
    with pytest.raises(results.ResultError, match="use letters, digits"):
        results.add(checkout / "experiments/results", "baselines", "my row", runs, config="c")
