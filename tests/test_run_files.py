"""Files of a run directory: empty, garbled, of another type, with bytes after the end."""

import csv
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from support import write_run

from mobilenet import build, rundir
from mobilenet import config as config_lib
from mobilenet.analysis import runs
from mobilenet.report import comparison, deployments, pretrained, results, rows, variants
from mobilenet.rundir import FileError, RunDirectoryError
from mobilenet.sweep import points
from mobilenet.train import records

FAULTS = {
    "empty": b"",
    "spaces": b" \n",
    "cut": b'{"status": "do',
    "binary": b"\x80\xff\x00",
    "list": b"[]",
    "number": b"5",
    "null": b"null",
    "nothing in it": b"{}",
}


def damage(path: Path, fault: str) -> None:
    if fault == "more after the end":
        path.write_bytes(path.read_bytes() + b"}\x00\x00")
    else:
        path.write_bytes(FAULTS[fault])


@pytest.fixture(params=[*FAULTS, "more after the end"])
def fault(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "sweep" / "points" / "a", 0.5, {}, first_step_seconds=1.0)


def assert_one_sentence(error: BaseException, path: Path) -> None:
    text = str(error)
    assert path.name in text and "\n" not in text and len(text) < 400, text
    assert text.endswith((".", "?")), text


def test_a_configuration(run: Path, fault: str):
    path = run / "config.json"
    damage(path, fault)
    with pytest.raises((FileError, config_lib.ConfigError)) as caught:
        rundir.read_config(run)
    assert_one_sentence(caught.value, path)


@pytest.mark.parametrize(
    "change", [{"train": 5}, {"seed": "x"}, {"model": {}}, {"other": 1}, {"data": {"name": 3}}]
)
def test_a_configuration_with_values_of_another_type(run: Path, change: dict[str, Any]):
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((FileError, config_lib.ConfigError)) as caught:
        rundir.read_config(run)
    assert_one_sentence(caught.value, path)


def test_class_names_and_normalisation(run: Path, fault: str):
    path = run / build.DATA_FILE
    damage(path, fault)
    with pytest.raises(FileError) as caught:
        build.read_stored(run)
    assert_one_sentence(caught.value, path)


@pytest.mark.parametrize(
    "stored",
    [
        {"mean": 0.5, "std": [1.0], "class_names": ["a"]},
        {"mean": ["x"], "std": [1.0], "class_names": ["a"]},
        {"mean": [], "std": [], "class_names": ["a"]},
        {"mean": [0.5, 0.5], "std": [1.0], "class_names": ["a"]},
        {"mean": [0.5], "std": [1.0], "class_names": "abc"},
        {"mean": [0.5], "std": [1.0], "class_names": [1, 2]},
    ],
)
def test_class_names_and_normalisation_of_another_type(tmp_path: Path, stored: dict[str, Any]):
    rundir.write_json(tmp_path / build.DATA_FILE, stored)
    with pytest.raises(FileError, match="data.json is damaged"):
        build.read_stored(tmp_path)


def test_a_summary(run: Path, fault: str, caplog: pytest.LogCaptureFixture):
    damage(run / "summary.json", fault)
    assert rundir.status(run) == ("pending" if fault == "nothing in it" else "damaged")
    frame = runs.load_runs(run.parent).frame
    assert fault == "nothing in it" or frame.loc["a", "error"]
    for make in (
        lambda: results.make_row("r", [run], config="c"),
        lambda: variants.add(run, "quantization", "e", run.parents[1], {"variant": {}}, config="c"),
        lambda: comparison.load(run.parents[1]),
    ):
        with pytest.raises(results.ResultError) as caught:
            make()
        assert "\n" not in str(caught.value)
    with caplog.at_level(logging.WARNING, "mobilenet"):
        assert records.read_summary(run) == {}  # it is written anew
    assert fault == "nothing in it" or "continues without it" in caplog.text


@pytest.mark.parametrize(
    "change",
    [{"test": 5}, {"test": {}}, {"params": "many"}, {"wall_seconds": None}, {"examples": []}],
)
def test_a_summary_with_values_of_another_type(run: Path, change: dict[str, Any]):
    summary = json.loads((run / "summary.json").read_text()) | change
    rundir.write_json(run / "summary.json", summary)
    with pytest.raises(results.ResultError, match="summary.json|test metrics") as caught:
        results.make_row("r", [run], config="c")
    assert "\n" not in str(caught.value)
    runs.load_runs(run)


def test_a_point(run: Path, fault: str):
    path = run / "point.json"
    damage(path, fault)
    assert rundir.status(run) == ("done" if fault == "nothing in it" else "damaged")
    with pytest.raises(results.ResultError) as caught:
        variants.find_runs(run.parent, {"variant": {}})
    assert_one_sentence(caught.value, path)
    assert len(runs.load_runs(run.parent).frame) == 1


def test_a_plan(tmp_path: Path, fault: str):
    path = points.write_plan([points.make_point(config_lib.get_config(), {})], tmp_path)
    damage(path, fault)
    if fault == "list":  # no points are points
        assert points.read_plan(path) == []
        return
    with pytest.raises(FileError) as caught:
        points.read_plan(path)
    assert_one_sentence(caught.value, path)
    path.write_text("[1]")
    with pytest.raises(FileError, match="does not list the points"):
        points.read_plan(path)


@pytest.mark.parametrize("name", ["quantization", "compression"])
def test_what_a_run_measured_of_itself(run: Path, fault: str, name: str):
    path = run / f"{name}.json"
    path.write_text("{}")
    damage(path, fault)
    if fault == "nothing in it" and name == "quantization":
        return  # as a run that is not quantised
    with pytest.raises(results.ResultError, match=f"{name}.json") as caught:
        variants.make_row("variant", [run], {}, table=name, experiment="e", config="c")
    assert "\n" not in str(caught.value)


def test_an_evaluation_and_rows_of_exports(tmp_path: Path, fault: str):
    path = tmp_path / "evaluation_test.json"
    path.write_text("{}")
    damage(path, fault)
    with pytest.raises(results.ResultError) as caught:
        pretrained.make_row("r", path)
    assert_one_sentence(caught.value, path)
    if fault != "list":
        with pytest.raises(results.ResultError) as caught:
            deployments.make_rows("e", [path])
        assert_one_sentence(caught.value, path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"\x80\xff", "is no CSV table"),
        (b"a,b\n1,2\n3\n", "row 2 has 1 values for 2 columns"),
        (b"a,b\n1,2,3\n", "row 1 has 3 values for 2 columns"),
        (b"a,c\n1,2\n", "has no column b"),
    ],
)
def test_a_table(tmp_path: Path, content: bytes, what: str):
    path = tmp_path / "comparison.csv"
    path.write_bytes(content)
    with pytest.raises(FileError, match=what):
        rows.read(path, ["a", "b"])
    with pytest.raises(FileError):  # the rows that are there are not thrown away
        rows.replace(path, ["b"], [{"b": 1}], by="b")
    assert path.read_bytes() == content


def test_a_table_of_committed_results_is_read(tmp_path: Path):
    path = tmp_path / "a.csv"
    made = [{"a": 'x, "y"\nz', "b": "é"}, {"a": "", "b": "1"}]
    rows.write(path, ["a", "b"], made)
    assert rows.read(path, ["b"]) == made
    with open(path, newline="") as file:
        assert list(csv.DictReader(file)) == made
    # As a spreadsheet saves it.
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert rows.read(path, ["a", "b"]) == made


def row(step: int, split: str = "train", **more: Any) -> str:
    return json.dumps({"step": step, "split": split, "loss": 1.0} | more) + "\n"


@pytest.mark.parametrize(
    "line", ["{", "5", "[]", "null", "{}", '{"step": "x", "split": "train"}', "\0"]
)
def test_lines_that_are_no_metrics_are_kept_elsewhere(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "metrics.jsonl"
    whole = row(1) + row(2, "validation", top1=0.5)
    path.write_text(row(1) + line + "\n" + row(2, "validation", top1=0.5) + row(3) + '{"step": 4')
    assert records.read_validations(tmp_path, 9) == {2: {"loss": 1.0, "top1": 0.5}}
    before = path.read_bytes()
    records.drop_after(path, 2)
    assert path.read_text() == whole
    assert "1 lines of" in caplog.text
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == before


def test_metrics_that_a_kill_cut_are_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "metrics.jsonl"
    for end in ('{"step": 4', "", row(2).strip()):
        path.write_text(row(1) + end)
        records.drop_after(path, 2)
        assert path.read_text() == row(1) + (row(2) if "loss" in end else "")
    assert caplog.text == "" and os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_file_that_cannot_be_read_is_no_damage(tmp_path: Path):
    (tmp_path / "config.json").symlink_to("/proc/self/mem")  # answers every read with EIO
    (tmp_path / "summary.json").mkdir()
    for name in ("config.json", "summary.json"):
        with pytest.raises(RunDirectoryError, match="could not be read") as caught:
            rundir.read_json(tmp_path / name)
        assert not isinstance(caught.value, FileError)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(small_disk: Path):
    path = small_disk / "a.json"
    rundir.write_json(path, {"old": 1})
    with pytest.raises(RunDirectoryError, match="The disk is full"):
        rundir.write_json(path, "x" * 500_000)
    assert rundir.read_json(path) == {"old": 1} and list(small_disk.iterdir()) == [path]
