"""`mobilenet compare`: a real sweep of two networks, timed for real, shown, and committed."""

from pathlib import Path

import pytest

from mobilenet import experiment
from mobilenet.cli.main import main
from mobilenet.report import comparison, rows
from mobilenet.sweep import points, runner

pytestmark = pytest.mark.slow  # whole commands, each in a process of its own

NETWORKS = """
from mobilenet import config as base
from mobilenet.sweep import space

def get_config(arg=""):
    config = base.get_config()
    config.model.blocks = ((2, 8, 1, 2),)
    config.model.stem_features = 8
    config.model.stem_strides = 1
    config.model.head_features = 0
    config.model.bn_momentum = 0.9
    config.data.image_size = 8
    config.data.channels = 1
    config.data.train_examples = 64
    config.train.global_batch_size = 16
    config.train.num_epochs = 1.0
    config.log.tensorboard = False
    return config


def sweep(arg=""):
    return space.product(space.grid({"model.width_multiplier": (1.0, 2.0)}), space.seeds(2))
"""


@pytest.fixture(scope="module")
def swept(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished sweep."""
    workdir = tmp_path_factory.mktemp("networks")
    file = workdir / "networks.py"
    file.write_text(NETWORKS)
    planned = points.points_of(
        experiment.load_config(str(file), {}), experiment.load_sweep(str(file))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        outcome = runner.run(planned, workdir, progress=False)
    assert len(outcome.done) == 4
    return workdir


def command(workdir: Path, *more: str) -> list[str]:
    return ["compare", f"--workdir={workdir}", "--rounds=1", "--batch_size=4", *more]


@pytest.fixture(scope="module")
def compared(swept: Path) -> Path:
    assert main(command(swept)) == 0
    return swept


def test_two_networks_are_measured_and_shown(compared: Path, capsys: pytest.CaptureFixture[str]):
    first, second = rows.read(compared / "comparison.csv")
    names = ["width_multiplier=1", "width_multiplier=2"]
    assert [first["network"], second["network"]] == names
    for row in (first, second):
        assert set(row) == set(comparison.FIELDS)
        assert row["seeds"] == "0 1" and row["split"] == "test, 360 images"
        assert float(row["low"]) <= float(row["top1_mean"]) <= float(row["high"])
        for field in ("latency_ms", "images_per_second"):
            ends = [float(row[f"{field}{end}"]) for end in ("_low", "", "_high")]
            assert 0 < ends[0] <= ends[1] <= ends[2]
        assert (row["batch_size"], row["rounds"]) == ("4", "1") and int(row["peak_mb"]) >= 0
        assert row["speed_device"] == row["device"] and row["speed_commit"]
        assert "jax=" in row["versions"] and "jax=" in row["speed_versions"]
    assert int(second["params"]) > int(first["params"])
    assert int(second["macs"]) > int(first["macs"])
    assert (compared / "comparison.png").stat().st_size > 10_000

    # Again: the same, and nothing is timed.
    before = (compared / "comparison.csv").read_text()
    assert main(command(compared)) == 0
    shown = capsys.readouterr().out
    assert "timing" not in shown and (compared / "comparison.csv").read_text() == before
    assert max(map(len, shown.splitlines()[:-1])) <= 80
    assert [line.split()[0] for line in shown.splitlines()[2:4]] == names
    assert "images/s" in shown and "at 4" in shown


def test_compared_networks_are_committed(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    results = tmp_path / "experiments" / "results"
    results.mkdir(parents=True)
    arguments = ["report", "comparison", str(compared), f"--root={tmp_path}", "--scale=tiny"]
    assert main(arguments) == 2
    assert "--config is missing" in capsys.readouterr().err
    assert main([*arguments, "--config=networks.py"]) == 0
    assert "2 networks compared at scale tiny" in capsys.readouterr().out
    made = rows.read(results / "comparison.csv")
    page = (results / "comparison.md").read_text()
    assert all(f"| {row['network']} " in page for row in made)
    assert [row["latency_ms"] for row in made] == [
        row["latency_ms"] for row in rows.read(compared / "comparison.csv")
    ]
    assert len(list((results / "logs" / "comparison" / "tiny").glob("points/*/summary.json"))) == 4
    assert (results / "figures" / "comparison_tiny.svg").exists()


def test_commands_that_cannot_run_are_refused(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for arguments, message in (
        (["compare"], "--workdir is missing"),
        (["compare", "--workdir=x", "y"], "'y' is not a flag"),
        (["compare", "--workdir=x", "--config.seed=1"], "compare takes no --config overrides"),
        (["compare", "--workdir=x", "--rounds=0"], "--rounds is 0; it must be 1 or more"),
        (["compare", f"--workdir={tmp_path}"], "holds no runs"),
        (["compare", f"--workdir={compared}"], "measured with batch_size 4, not 64"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_without_measuring_rows_have_no_speed(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # The runs alone, in a directory without a table.
    (tmp_path / "points").symlink_to(swept / "points")
    assert main(command(tmp_path, "--measure=false")) == 0
    assert "latency" not in capsys.readouterr().out
    assert all(row["latency_ms"] == "" for row in rows.read(tmp_path / "comparison.csv"))
