"""`mobilenet reproduce`: lists claims, trains what is missing, judges, and commits."""

import json
import shutil
from pathlib import Path

import pytest
from support import ROOT, Command

from mobilenet import rundir
from mobilenet.cli.main import main
from mobilenet.config import ConfigError
from mobilenet.report import claims, reproduction, rows
from mobilenet.report.claim_list import CLAIMS

pytestmark = pytest.mark.slow  # whole commands, each in a process of its own

# One block instead of seven, and no augmentation: compiling them is most of a smoke run's time.
SMALLER = """

def smaller(config):
    config.model.blocks = ((2, 8, 1, 2),)
    config.model.stage_strides = ()
    config.model.head_features = 16
    config.augment.random_crop_padding = 0
    config.augment.horizontal_flip = False
    config.log.tensorboard = False
    return config
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the claims' real experiments, on networks of one block."""
    experiments = tmp_path_factory.mktemp("checkout") / "experiments"
    shutil.copytree(ROOT / "experiments" / "ablations", experiments / "ablations")
    (experiments / "reference").symlink_to(ROOT / "experiments" / "reference")
    (experiments / "results" / "figures").mkdir(parents=True)
    for path in (experiments / "ablations").glob("*.py"):
        text = path.read_text()
        assert text.count("return scales.base(arg)\n") == 1
        text = text.replace("return scales.base(arg)\n", "return smaller(scales.base(arg))\n")
        path.write_text(text + SMALLER)
    return experiments.parent


@pytest.fixture(scope="module")
def reproduced(
    mobilenet: Command, checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The workdir of one claim at the smallest scale, and what the command printed."""
    workdir = tmp_path_factory.mktemp("reproduce")
    done = mobilenet(*command(checkout, workdir, "fig6a"))
    return workdir, done.stdout


def command(checkout: Path, workdir: Path, *claim: str) -> list[str]:
    return ["reproduce", *claim, "--scale=smoke", f"--root={checkout}", f"--workdir={workdir}"]


def assert_fig6a(workdir: Path, out: str) -> None:
    """The runs are done, and what was printed is what they say."""
    runs = sorted((workdir / "smoke" / "points").iterdir())
    assert len(runs) == 4 and all(rundir.status(run) == "done" for run in runs)
    assert "4 runs: 4 done" in out
    table = [line.split() for line in out.splitlines() if line.startswith(("linear", "ReLU6"))]
    accuracies = [json.loads((r / "summary.json").read_text())["test"]["top1"] for r in runs]
    mean = 50 * sum(accuracies)  # percent, of 2 seeds in 2 variants
    assert float(table[0][1]) + float(table[1][1]) == pytest.approx(mean, abs=0.02)
    assert all(row[-4:-2] == ["0", "1"] for row in table)
    judged = out[out.index("\nfig6a") :]
    assert "linear against ReLU6: " in judged and "2 seeds" in judged
    assert "scale smoke, seeds 0 1, commit" in judged.replace("\n" + 13 * " ", " ")
    verdict = next(line for line in judged.splitlines() if line.strip().startswith("verdict"))
    assert any(name in verdict for name in ("confirmed", "contradicted", "inconclusive"))
    # A path is not broken, so that it can be copied.
    assert max(len(line) for line in out.splitlines() if str(workdir) not in line) <= 80


def test_a_claim_is_trained_and_judged(reproduced: tuple[Path, str]):
    assert_fig6a(*reproduced)


def test_the_papers_blocks_are_trained_and_judged(mobilenet: Command, tmp_path: Path):
    done = mobilenet(*command(ROOT, tmp_path, "fig6a"), "--lanes=2")
    assert_fig6a(tmp_path, done.stdout)


def test_done_runs_are_not_trained_again(
    mobilenet: Command, checkout: Path, reproduced: tuple[Path, str]
):
    workdir, out = reproduced
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("summary.json")}
    again = mobilenet(*command(checkout, workdir, "fig6a"))
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("summary.json")} == before
    assert again.stdout == out


def test_claims_find_the_runs_that_they_share(checkout: Path, reproduced: tuple[Path, str]):
    workdir, _ = reproduced
    found = reproduction.collect(checkout, workdir / "smoke" / "points", "smoke")
    finished = {
        (claim.name, name)
        for claim, variants, _ in found
        for name, variant in variants.items()
        if len(variant.top1) == 2
    }
    # The baseline was trained for Fig. 6a and stands in the others' variants.
    assert finished == {
        ("fig6a", "linear"), ("fig6a", "ReLU6"), ("fig6b_expansion", "between bottlenecks"),
        ("expansion_5_to_10", "t = 6"), ("se", "without"), ("head", "width 0.25, head kept"),
        ("fig5_width", "width 0.25, 32 px"), ("fig5_resolution", "width 0.25, 32 px"),
    }  # fmt: skip


def test_the_list_judges_every_claim(
    checkout: Path, reproduced: tuple[Path, str], capsys: pytest.CaptureFixture[str]
):
    workdir, _ = reproduced
    assert main([*command(checkout, workdir), "--details"]) == 0
    listed = capsys.readouterr().out
    blocks = {block.split("\n")[0]: block for block in listed.split("\n\n")}
    for claim in CLAIMS:
        block = blocks[claim.name]
        assert "  published  " in block and "  ours       " in block and "  verdict    " in block
        assert ("mobilenet reproduce" in block) == bool(claim.experiment)
    assert "2 seeds" in blocks["fig6a"]
    assert "inconclusive: not run" in blocks["se"]  # though one of its variants is Fig. 6a's
    assert "inconclusive: not run" in blocks["fig6b_none"]
    assert "recalled, not read" in blocks["fig6b_none"]
    assert "10 confirmed, 4 contradicted" in listed


def test_a_claim_by_arithmetic_needs_no_runs(capsys: pytest.CaptureFixture[str]):
    assert main(["reproduce", "table2", f"--root={ROOT}"]) == 0
    shown = capsys.readouterr().out
    assert "confirmed: 11 of 11 values agree" in shown and "computed, commit" in shown


def test_runs_become_rows_and_answers(
    checkout: Path, reproduced: tuple[Path, str], capsys: pytest.CaptureFixture[str]
):
    workdir, _ = reproduced
    results = checkout / "experiments" / "results"
    assert {*reproduction.committed(checkout)["fig6a"]} == {reproduction.NOT_RUN}
    assert main([
        "report", "ablations", str(workdir), f"--root={checkout}", "--scale=smoke",
        "--remarks=two steps",
    ]) == 0  # fmt: skip
    assert "written: experiments/results/ablations.md" in capsys.readouterr().out
    made = rows.read(results / "ablations.csv")
    page = (results / "ablations.md").read_text()
    assert f"| linear | {made[0]['top1_mean']} [" in page
    assert [row["claim"] for row in made] == ["fig6a", "fig6a"]  # the others were not run
    linear = made[0]
    assert (linear["variant"], linear["seeds"], linear["epochs"]) == ("linear", "0 1", "0.5")
    assert len(list((results / claims.logs_of("smoke")).glob("*/metrics.jsonl"))) == 4
    # The committed logs give what the run directories gave.
    logs = claims.logs_of("smoke")
    claim, variants, comparison = reproduction.collect(checkout, results / logs, "smoke")[0]
    assert made == claims.make_rows(
        claim, "smoke", variants, comparison, logs=logs, remarks="two steps"
    )
    # And the rows the same answer as the runs.
    from_runs = reproduction.measured(checkout, workdir, "smoke", {})
    for scale in ("", "smoke"):
        assert reproduction.committed(checkout, scale)["fig6a"] == from_runs["fig6a"]
    assert reproduction.committed(checkout, "cifar")["fig6a"] == [reproduction.NOT_RUN]


def test_reports_without_runs_are_refused(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["report", "ablations", str(tmp_path), f"--root={checkout}"]
    assert main([*flags, "--scale=smoke"]) == 2
    assert "No claim was run at scale smoke" in capsys.readouterr().err
    assert main(flags) == 2
    assert "--scale is missing; for example --scale=cifar" in capsys.readouterr().err
    assert main([*flags, "--scale=cpu"]) == 2
    assert "--scale is 'cpu'; allowed are:\n  smoke " in capsys.readouterr().err


def test_other_recipes_are_marked(checkout: Path, tmp_path: Path):
    # Where the data lies and how often is logged are not part of a point.
    same = {"log.every_steps": "7", "data.data_dir": str(tmp_path)}
    other = {"train.label_smoothing": "0.1"}
    trials = [
        reproduction.load_trial(checkout, CLAIMS[0].experiment, "cifar", tmp_path, overrides)
        for overrides in ({}, same, other)
    ]
    keys = [{point.key for point in trial.points} for trial in trials]
    assert keys[0] == keys[1] and not keys[0] & keys[2]
    assert trials[1].points[0].config.data.data_dir == str(tmp_path)


def test_runs_that_did_not_finish_fail_the_command(mobilenet: Command, tmp_path: Path):
    points = tmp_path / "smoke" / "points"
    experiment = next(claim.experiment for claim in CLAIMS if claim.name == "se")
    trial = reproduction.load_trial(
        ROOT, experiment, "smoke", points, {"train.label_smoothing": "0.1"}
    )
    for variant in trial.variants.values():
        for run in variant.runs.values():
            run.mkdir(parents=True)
            rundir.write_json(run / "summary.json", {"status": "diverged", "error": "at step 1"})
    changed = "--config.train.label_smoothing=0.1"
    failed = mobilenet(*command(ROOT, tmp_path, "se"), changed, ok=False)
    assert failed.returncode == 1, failed.stderr
    shown = " ".join(failed.stdout.split())
    assert (
        "4 runs: 4 diverged diverged: SE, seed 0" in shown
        and "not finished: SE, seeds 0 1: diverged" in shown
    )
    assert "inconclusive: a variant has no finished run: SE, seeds 0 1: diverged" in shown
    # It is not the scale's own recipe, and says so.
    assert "with train.label_smoothing=0.1" in shown


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("fig6",), "'fig6' is no claim; did you mean fig6a"),
        (("fig6a",), "--scale is missing; fig6a needs runs"),
        (("fig6a", "--scale=huge"), "--scale is 'huge'; allowed are:\n  smoke "),
        (("fig6a", "--scale=smoke"), "--workdir is missing"),
        (("fig6a", "se", "--scale=smoke"), "'se' is one claim too many"),
        (("fig6a", "--scale=smoke", "--workdir=w", "--jobs=0"), "--jobs is 0; it must be 1"),
        (("--workdir=w",), "--scale is missing: --workdir holds a directory for each scale"),
        (("--root=nowhere",), "nowhere/experiments/reference does not exist; run in the checkout"),
        (("fig6a", "--config.model.with=1", "--scale=smoke", "--workdir=w"), "did you mean"),
    ],
)
def test_commands_that_cannot_run_are_refused(
    args: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.chdir(ROOT)
    assert main(["reproduce", *args]) == 2
    assert message in capsys.readouterr().err


def test_a_checkout_without_reference_values_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "experiments" / "reference").mkdir(parents=True)
    for claim in ((), ("table2",)):
        assert main(["reproduce", *claim, f"--root={tmp_path}"]) == 2
        assert "architecture.csv has no row with any value" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def variants(", "def variant(",
         r"bottleneck.py has no variants\(arg\); a claim's experiment needs"),
        ("def variants(",
         'def sweep():\n    return [{"model.dropout_rate": 0.5}]\n\n\ndef variants(',
         r"dropout_rate=0.5 belongs to none of its variants \(linear, ReLU6\)"),
        ('{"fig6a"', '{"fig6"', "'fig6' is no claim; did you mean fig6a"),
    ],
)  # fmt: skip
def test_experiments_that_do_not_fit_their_claims_are_refused(
    checkout: Path, tmp_path: Path, old: str, new: str, message: str
):
    shutil.copytree(checkout / "experiments" / "ablations", tmp_path / "experiments" / "ablations")
    path = tmp_path / "experiments" / "ablations" / "bottleneck.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        reproduction.collect(tmp_path, tmp_path / "points", "smoke")
