"""Networks next to each other: rows from run directories written here, table, plot, commits."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Annotation
from support import write_run

from mobilenet import config as config_lib
from mobilenet import experiment
from mobilenet.cli import common
from mobilenet.report import (
    comparison,
    comparison_speeds,
    comparison_text,
    comparison_views,
    networks,
    rows,
)
from mobilenet.report.pages import comparison as comparison_page
from mobilenet.report.results import ResultError
from mobilenet.rundir import write_json
from mobilenet.sweep import points

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
V2 = {"model.name": "mobilenet_v2", "model.width_multiplier": 0.35}
RESNET = {"model.name": "resnet18", "model.width_multiplier": 0.25}


def write_networks(root: Path, *networks: Mapping[str, Any], seeds: int = 3) -> Path:
    """Runs at 50, 52 and 54 % of the first network, a point more of each following one."""
    for place, overrides in enumerate(networks):
        for seed in range(seeds):
            path = root / "points" / f"{place}_{seed}"
            write_run(path, 0.5 + 0.02 * seed + 0.01 * place, overrides, seed)
    return root


def edit(path: Path, **changes: Any) -> None:
    write_json(path, {**json.loads(path.read_text()), **changes})


def timed(
    found: Iterable[comparison.Row], *, rounds: int = 3, many: int = 64
) -> list[dict[str, str]]:
    """Rows with a speed that rises from row to row."""

    def measured(seconds: float, size: int) -> dict[str, Any]:
        times = {"seconds": seconds, "seconds_low": 0.9 * seconds, "seconds_high": 1.25 * seconds}
        where = {"device": "1 x cpu (cpu)", "processor": "a processor", "versions": "jax=1.0"}
        sizes = {"batch_size": size, "peak_mb": "12", "temp_mb": "4", "rounds": rounds}
        return {**times, **sizes, **where, "environment": "", "commit": "def"}

    return [
        {**row, **comparison_speeds.speed(measured(0.002 * n, 1), measured(0.032 * n, many))}
        for n, row in enumerate(found, 1)
    ]


def test_every_network_has_a_name():
    assert tuple(sorted(networks.NAMES)) == tuple(sorted(config_lib.CHOICES["model.name"]))


def test_rows_hold_means_intervals_and_where_they_come_from(tmp_path: Path):
    found = comparison.load(write_networks(tmp_path, RESNET, V2))
    v2, resnet = found.rows  # families have an order of their own
    assert [v2["network"], resnet["network"]] == ["MobileNetV2 0.35", "ResNet-18 0.25"]
    # 50, 52, 54 and t(2) = 4.3027: 4.3027 * 2 / sqrt(3) = 4.97.
    assert [resnet[k] for k in ("top1_mean", "top1_std", "low", "high", "seeds")] == [
        "52.00", "2.00", "47.03", "56.97", "0 1 2",
    ]  # fmt: skip
    assert v2["top1_mean"] == "53.00" and v2["unfinished"] == ""
    assert (v2["params"], v2["macs"], v2["bytes"]) == ("250000", "5000000", "1000000")
    assert (v2["seconds_mean"], v2["train_examples"], v2["epochs"]) == ("61.0", "900", "10")
    assert (v2["data"], v2["split"], v2["image_size"]) == ("digits", "test, 200 images", "32")
    assert (v2["device"], v2["processor"]) == ("1 x cpu (cpu)", "a processor")
    assert (v2["versions"], v2["commit"]) == ("jax=1.0", "abc")
    assert found.runs[v2["run"]] == ("points/1_0", "points/1_1", "points/1_2")
    assert set(v2) == set(comparison.FIELDS) and found.notes == ()
    assert all(v2[field] == "" for field in comparison_speeds.FIELDS)


def test_one_seed_has_no_interval_and_machines_may_be_several(tmp_path: Path):
    write_run(tmp_path / "a", 0.5, V2)
    write_run(tmp_path / "b", 0.6, RESNET, commit="old", lanes=2)
    write_run(tmp_path / "c", 0.6, RESNET, 1, commit="new", lanes=2)
    v2, resnet = comparison.load(tmp_path).rows
    assert [v2[k] for k in ("top1_mean", "top1_std", "low", "high")] == ["50.00", "", "", ""]
    assert (resnet["commit"], resnet["lanes"]) == ("old; new", "2")
    shown = comparison_text.text([v2, resnet])
    assert ["MobileNetV2", "0.35", "1", "50.00"] in [line.split() for line in shown.splitlines()]
    assert "share their time, 2 at once: ResNet-18 0.25" in shown


def test_labels_tell_networks_of_one_name_apart(tmp_path: Path):
    wide = {**V2, "model.width_multiplier": 1.0}
    rates = [{**wide, "optimizer.learning_rate": rate} for rate in (0.05, 0.2)]
    found = comparison.load(write_networks(tmp_path, V2, *rates, seeds=1))
    assert [row["network"] for row in found.rows] == [
        "MobileNetV2 0.35",
        "MobileNetV2 1.0, learning_rate=0.05",
        "MobileNetV2 1.0, learning_rate=0.2",
    ]
    assert found.rows[1]["differs"] == "optimizer.learning_rate=0.05"
    assert found.notes == ("not only the networks differ: optimizer.learning_rate",)
    sizes = [{**V2, "data.image_size": size} for size in (32, 24)]
    found = comparison.load(write_networks(tmp_path / "sizes", *sizes, RESNET, seeds=1))
    assert [row["network"] for row in found.rows] == [
        "MobileNetV2 0.35, 24 px", "MobileNetV2 0.35, 32 px", "ResNet-18 0.25, 32 px",
    ]  # fmt: skip
    assert found.notes == ()


def test_unfinished_runs_are_told(tmp_path: Path):
    write_networks(tmp_path, V2, RESNET)
    failed, running, damaged, killed = (
        tmp_path / "points" / name for name in ("0_1", "1_0", "1_1", "1_2")
    )
    edit(failed / "summary.json", status="failed", error="out of memory")
    edit(running / "summary.json", status="interrupted")
    (damaged / "config.json").write_text("{")
    (damaged / "point.json").unlink()
    edit(killed / "summary.json", status="running")
    pending = tmp_path / "points" / "pending"
    pending.mkdir()
    write_json(pending / "point.json", {"group": "p", "overrides": {**V2, "seed": 4}})
    found = comparison.load(tmp_path)
    unfinished = [(row["network"], row["seeds"], row["unfinished"]) for row in found.rows]
    assert unfinished == [
        ("MobileNetV2 0.35", "0 2", "seed 1 failed"),
        ("MobileNetV2 0.35", "", "seed 4 pending"),
        ("ResNet-18 0.25", "", "seed 0 interrupted; seed 2 killed"),
    ]
    assert "not finished: MobileNetV2 0.35, seed 1 failed" in found.notes
    assert "points/0_1 ended with: out of memory" in found.notes
    assert any(note.startswith("cannot be read: points/1_1: config.json") for note in found.notes)
    shown = comparison_text.text(found.rows, found.notes)
    assert ["ResNet-18", "0.25", "0", "-"] in [line.split()[:4] for line in shown.splitlines()]
    assert "out of memory" in shown
    assert len(comparison_views.finished(found.rows)) == 1


def test_directories_without_finished_runs_are_refused(tmp_path: Path):
    with pytest.raises(ResultError, match="holds no runs: neither it nor a directory below"):
        comparison.load(tmp_path)
    edit(write_run(tmp_path / "a", 0.5, V2) / "summary.json", status="diverged")
    with pytest.raises(ResultError, match="no finished run to compare: 1 run: 1 diverged. Start"):
        comparison.load(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "file", "changes", "message"),
    [
        ({"data.name": "cifar10"}, "", {}, "data.name is 'digits' in a, 'cifar10' in b. Give"),
        ({"data.test_split": "exam"}, "", {}, "data.test_split is 'test' in a, 'exam' in b"),
        ({"data.train_examples": 64}, "", {}, "data.train_examples is 0 in a, 64 in b"),
        ({}, "summary", {"test": {"top1": 0.5, "examples": 100}},
         "test images is 200 in a, 100 in b"),
        ({}, "summary", {"examples": {"train": 90, "validation": 100}},
         "train images is 900 in a, 90 in b"),
        ({}, "data", {"class_names": ["cat", "dog"]}, r"classes is 0, 1, 2, ... \(10\) in a, "
         r"cat, dog \(2\) in b"),
        ({}, "summary", {"test": {}}, "b has no test metrics; its data set needs a test split"),
        ({"model.name": "mobilenet_v2", "model.width_multiplier": 0.35}, "", {},
         "MobileNetV2 0.35 has seed 0 more than once: a, b"),
    ],
)  # fmt: skip
def test_runs_that_cannot_stand_in_one_table_are_refused(
    tmp_path: Path, overrides: dict[str, Any], file: str, changes: dict[str, Any], message: str
):
    write_run(tmp_path / "a", 0.5, V2)
    run = write_run(tmp_path / "b", 0.5, {**RESNET, **overrides})
    if file:
        edit(run / f"{file}.json", **changes)
    with pytest.raises(ResultError, match=message):
        comparison.load(tmp_path)


def test_unfinished_runs_may_be_of_anything(tmp_path: Path):
    write_run(tmp_path / "a", 0.5, V2)
    run = write_run(tmp_path / "b", 0.5, {**RESNET, "data.name": "cifar10"})
    edit(run / "summary.json", status="diverged")
    assert len(comparison.load(tmp_path).rows) == 2


def test_speeds_are_those_of_the_benchmark(tmp_path: Path):
    (row,) = timed(comparison.load(write_networks(tmp_path, V2)).rows)
    assert [float(row[f"latency_ms{end}"]) for end in ("", "_low", "_high")] == [2.0, 1.8, 2.5]
    assert [float(row[f"images_per_second{end}"]) for end in ("", "_low", "_high")] == [
        2000, 1600, 2222,
    ]  # fmt: skip
    assert (row["batch_size"], row["peak_mb"], row["rounds"]) == ("64", "12", "3")
    assert (row["speed_device"], row["speed_commit"]) == ("1 x cpu (cpu)", "def")
    shown = comparison_text.text([row])
    # The farthest round of the latency is the slowest, 25 % above; of images/s 20 % below.
    assert "2.00 ±25%  2,000 ±20%" in shown and "at 64" in shown
    (row,) = timed(comparison.load(tmp_path).rows, rounds=1)
    assert " 2.00     2,000 " in comparison_text.text([row])


def test_only_what_was_not_measured_is_and_in_the_same_way(tmp_path: Path):
    write_networks(tmp_path, V2)
    known = timed(comparison.load(tmp_path).rows)
    # The first seed's run may come later than the one that was measured.
    shutil.move(tmp_path / "points" / "0_0", tmp_path / "points" / "9_0")
    write_networks(tmp_path / "more", RESNET)
    found = comparison.load(tmp_path)
    assert found.runs["points/0_1"] == ("points/0_1", "points/0_2", "points/9_0")
    known[0]["run"] = "points/9_0"
    merged = comparison.keep_speeds(found, known)
    assert [bool(row["latency_ms"]) for row in merged] == [True, False]
    here = (64, "1 x cpu (cpu)", "a processor")
    assert comparison_speeds.unmeasured(merged, *here) == [merged[1]]
    for other, message in (
        ((32, *here[1:]), "MobileNetV2 0.35 measured with batch_size 64, not 32. Measure the"),
        ((64, "8 x gpu", here[2]), "with device 1 x cpu .cpu., not 8 x gpu"),
    ):
        with pytest.raises(ResultError, match=message):
            comparison_speeds.unmeasured(merged, *other)


def test_files_of_other_versions_are_refused(tmp_path: Path):
    path = tmp_path / "comparison.csv"
    assert comparison.read(path) == []
    path.write_text("network,top1\nMobileNetV2,1\n")
    with pytest.raises(ResultError, match="written by another version, with other columns"):
        comparison.read(path)


def every_network(root: Path) -> list[dict[str, str]]:
    """Rows with the widest texts there are, MACs and latencies all over."""
    names = list(networks.NAMES)
    overrides = [
        {"model.name": name, "model.width_multiplier": width}
        for name in names
        for width in (0.35, 1.0)
    ]
    found = timed(comparison.load(write_networks(root, *overrides)).rows)
    for place, row in enumerate(found):
        row["macs"] = str(10**6 * 2**place + 321)
        row["params"], row["bytes"] = "23520842", "94083368"
        row["peak_mb"], row["seconds_mean"] = "1234", "36000"
    return found


def test_the_table_fits_a_terminal(tmp_path: Path):
    found = every_network(tmp_path)
    notes = [f"a note that is {'very ' * 30}long"]
    lines = comparison_text.text(found, notes).splitlines()
    assert max(map(len, lines)) <= 80
    # Two tables with a line for each network, nothing cut.
    starts = [place for place, line in enumerate(lines) if line.startswith("variant")]
    first, second = (lines[start + 2 : start + 2 + len(found)] for start in starts)
    for table in (first, second):
        assert [line.split("  ")[0] for line in table] == [row["network"] for row in found]
    assert "…" not in "\n".join(lines)
    assert first[0].split()[2:] == ["3", "52.00", "[47.03,", "56.97]"]
    assert second[0].split()[2:5] == ["23.5", "1.00", "1234"]
    assert "95 % t-interval" in " ".join(lines)


def test_the_plot_shows_every_row_with_its_bars_and_name(tmp_path: Path):
    found = every_network(tmp_path)
    found[0]["low"] = found[0]["high"] = ""
    figure = comparison_views.plot(found)
    left, right = figure.axes
    for axes, field, scale in ((left, "macs", 1e-6), (right, "latency_ms", 1.0)):
        assert axes.get_xscale() == "log"
        drawn: list[tuple[float, float]] = []
        for container in axes.containers:
            drawn += container[0].get_xydata().tolist()  # type: ignore[union-attr]
        expected = [(scale * float(row[field]), float(row["top1_mean"])) for row in found]
        np.testing.assert_allclose(sorted(drawn), sorted(expected))
        names = [t for t in axes.texts if isinstance(t, Annotation)]
        assert [t.get_text() for t in names][:6] == ["0.35", "1.0"] * 2 + [
            "small, 0.35",
            "small, 1.0",
        ]
        assert [t.get_text() for t in names][-1] == "50, 1.0"
        figure.draw_without_rendering()
        boxes = [t.get_window_extent() for t in names]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)
    colours = {c.get_label(): c[0].get_color() for c in left.containers}  # type: ignore
    assert list(colours) == ["MobileNetV1", "MobileNetV2", "MobileNetV3", "ResNet"]
    assert len(set(colours.values())) == 4
    # Both panels have vertical bars, the right one horizontal ones too: slowest and fastest round.
    assert [len(axes.containers[0][2]) for axes in figure.axes] == [1, 2]
    sideways = right.containers[0][2][0].get_segments()  # type: ignore[union-attr]
    np.testing.assert_allclose(sideways[0][:, 0], [1.8, 2.5])
    upwards = left.containers[0][2][0].get_segments()  # type: ignore[union-attr]
    assert upwards[0].size == 0  # one seed has no bar
    np.testing.assert_allclose(upwards[1][:, 1], [48.03, 57.97])


def test_without_speeds_there_is_one_panel(tmp_path: Path):
    found = comparison.load(write_networks(tmp_path, V2, RESNET)).rows
    assert [axes.get_xlabel() for axes in comparison_views.plot(found).axes] == [
        "multiply-adds per image, millions"
    ]


# --------------------------------------------------------------------------- committed results


def measured_sweep(root: Path, *networks: Mapping[str, Any]) -> Path:
    """A sweep as `mobilenet compare` leaves it."""
    write_networks(root, *networks)
    found = timed(comparison.load(root).rows)
    rows.write(root / "comparison.csv", comparison.FIELDS, found)
    return root


def test_logs_give_the_committed_rows_again(tmp_path: Path):
    sweep = measured_sweep(tmp_path / "sweep", V2, RESNET)
    edit(sweep / "points" / "1_2" / "summary.json", status="diverged")
    target = tmp_path / "results"
    target.mkdir()
    notes = {"scale": "cifar", "config": "file.py:cifar", "remarks": "a remark"}
    made = comparison.add(target, sweep, **notes)
    assert rows.read(target / "comparison.csv") == made
    assert made[1]["seeds"] == "0 1" and made[1]["unfinished"] == "seed 2 diverged"
    logs = target / comparison.logs_of("cifar")
    again = comparison.make_rows(comparison.load(logs), made, **notes)
    assert again == made
    assert {path.name for path in (logs / "points" / "0_0").iterdir()} == set(comparison.LOGGED)
    for path in logs.glob("points/*/config.json"):
        assert json.loads(path.read_text())["data"]["data_dir"] == ""
    assert len(list(logs.glob("points/*/summary.json"))) == 6  # unfinished ones too
    assert (target / "figures" / "comparison_cifar.svg").stat().st_size > 10_000


def test_scales_are_replaced_one_by_one(tmp_path: Path):
    first = measured_sweep(tmp_path / "first", V2, RESNET)
    second = measured_sweep(tmp_path / "second", V2)
    for scale, sweep in (("full", first), ("cifar", first), ("full", second)):
        comparison.add(tmp_path, sweep, scale=scale, config="file.py")
    found = [(row["scale"], row["network"]) for row in rows.read(tmp_path / "comparison.csv")]
    assert found == [
        ("cifar", "MobileNetV2 0.35"), ("cifar", "ResNet-18 0.25"), ("full", "MobileNetV2 0.35"),
    ]  # fmt: skip
    assert len(list((tmp_path / comparison.logs_of("full")).glob("points/*"))) == 3


def test_sweeps_that_were_not_compared_are_refused(tmp_path: Path):
    sweep = write_networks(tmp_path / "sweep", V2)
    with pytest.raises(ResultError, match="comparison.csv does not exist; `mobilenet compare"):
        comparison.add(tmp_path, sweep, scale="cifar", config="file.py")
    with pytest.raises(ResultError, match="scale is '../up'; use letters, digits"):
        comparison.add(tmp_path, sweep, scale="../up", config="file.py")


def test_the_page_shows_ranges_and_gaps(tmp_path: Path):
    rates = [{**V2, "optimizer.learning_rate": rate} for rate in (0.1, 0.2)]
    sweep = measured_sweep(tmp_path / "sweep", *rates, RESNET)
    for seed in range(3):
        edit(sweep / "points" / f"2_{seed}" / "summary.json", status="failed")
    comparison.add(tmp_path, sweep, scale="s", config="f.py", remarks="busy machine")
    page = comparison_page.page(tmp_path)
    text = page.text()
    rate = "`optimizer.learning_rate=0.1` |"
    assert f"{rate} 52.00 [47.03, 56.97] | – | 250,000 | 5.0 M |" in text
    assert f"{rate} 2.00 (1.80–2.50) | 2,000 (1,600–2,222) | 64 | 3 |" in text
    assert f"| ResNet-18 0.25 {rate} not finished: seeds 0 1 2 failed |" in text
    assert "900 training images x 10 epochs: 52.00 [47.03, 56.97] % top-1" in page.base
    assert "- Busy machine." in text and "(figures/comparison_s.svg)" in text


COMMITTED = rows.read(RESULTS / "comparison.csv")
SCALES = sorted({row["scale"] for row in COMMITTED})


@pytest.mark.parametrize("scale", SCALES)
def test_committed_rows_follow_from_their_logs(scale: str):
    expected = [row for row in COMMITTED if row["scale"] == scale]
    notes = {key: expected[0][key] for key in ("scale", "config", "remarks")}
    found = comparison.load(RESULTS / comparison.logs_of(scale))
    assert comparison.make_rows(found, expected, **notes) == expected
    for row in comparison_views.finished(expected):
        commits = f"{row['commit']} {row['speed_commit']}"
        assert "dirty" not in commits and "unknown" not in commits


@pytest.mark.parametrize("scale", SCALES)
def test_committed_runs_are_points_of_their_experiment(scale: str):
    expected = [row for row in COMMITTED if row["scale"] == scale]
    path = str(ROOT / expected[0]["config"])
    _, overrides = common.split_overrides([])
    planned = points.points_of(experiment.load_config(path, overrides), experiment.load_sweep(path))
    known = {point.key for point in planned}
    logs = RESULTS / comparison.logs_of(scale)
    for file in logs.glob("**/config.json"):
        assert config_lib.fingerprint(config_lib.from_json(file.read_text())) in known, file
