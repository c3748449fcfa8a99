"""`mobilenet reproduce`: lists claims, trains what is missing, judges, and commits."""

import json
from pathlib import Path

import pytest
from support import ROOT, Command

from mobilenet import rows, rundir
from mobilenet.analysis import claims
from mobilenet.cli import reproduce


@pytest.fixture(scope="module")
def reproduced(mobilenet: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The workdir of one claim at the smallest scale, and what the command printed."""
    workdir = tmp_path_factory.mktemp("reproduce")
    done = mobilenet("reproduce", "fig6a", "--scale=smoke", f"--workdir={workdir}")
    return workdir, done.stdout


def test_a_claim_is_trained_and_judged(reproduced: tuple[Path, str]):
    workdir, out = reproduced
    runs = sorted((workdir / "smoke" / "points").iterdir())
    assert len(runs) == 4 and all(rundir.status(run) == "done" for run in runs)
    assert "4 points: 4 done" in out
    table = [line.split() for line in out.splitlines() if line.startswith(("linear", "ReLU6"))]
    accuracies = [json.loads((r / "summary.json").read_text())["test"]["top1"] for r in runs]
    mean = 50 * sum(accuracies)  # percent, of 2 seeds in 2 arms
    assert float(table[0][1]) + float(table[1][1]) == pytest.approx(mean, abs=0.02)
    assert all(row[-4:-2] == ["0", "1"] for row in table)
    judged = out[out.index("\nfig6a") :]
    assert "linear against ReLU6: " in judged and "2 seeds" in judged
    assert "scale smoke, seeds 0 1, commit" in judged.replace("\n" + 13 * " ", " ")
    verdict = next(line for line in judged.splitlines() if line.strip().startswith("verdict"))
    assert any(name in verdict for name in ("confirmed", "contradicted", "inconclusive"))
    assert max(map(len, out.splitlines())) <= 100


def test_done_runs_are_not_trained_again(mobilenet: Command, reproduced: tuple[Path, str]):
    workdir, out = reproduced
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("summary.json")}
    again = mobilenet("reproduce", "fig6a", "--scale=smoke", f"--workdir={workdir}")
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("summary.json")} == before
    assert again.stdout == out


def test_claims_find_the_runs_that_they_share(reproduced: tuple[Path, str]):
    workdir, _ = reproduced
    found = reproduce.collect(ROOT, workdir / "smoke" / "points", "smoke")
    finished = {
        (claim.name, name)
        for claim, arms, _ in found
        for name, arm in arms.items()
        if len(arm.top1) == 2
    }
    # The baseline was trained for Fig. 6a and stands in the others' arms.
    assert finished == {
        ("fig6a", "linear"), ("fig6a", "ReLU6"), ("fig6b_expansion", "between bottlenecks"),
        ("expansion_5_to_10", "t = 6"), ("se", "without"), ("head", "width 0.25, head kept"),
        ("fig5_width", "width 0.25, 32 px"), ("fig5_resolution", "width 0.25, 32 px"),
    }  # fmt: skip


def test_the_list_judges_every_claim(mobilenet: Command, reproduced: tuple[Path, str]):
    workdir, _ = reproduced
    listed = mobilenet("reproduce", "--scale=smoke", f"--workdir={workdir}").stdout
    assert max(map(len, listed.splitlines())) <= 100
    blocks = {block.split("\n")[0]: block for block in listed.split("\n\n")}
    for claim in claims.CLAIMS:
        block = blocks[claim.name]
        assert "  published  " in block and "  ours       " in block and "  verdict    " in block
        assert ("mobilenet reproduce" in block) == bool(claim.experiment)
    assert "2 seeds" in blocks["fig6a"]
    assert "inconclusive: not run" in blocks["se"]  # though one of its arms is Fig. 6a's
    assert "inconclusive: not run" in blocks["fig6b_none"]
    assert "recalled, not read" in blocks["fig6b_none"]
    assert "10 confirmed, 4 contradicted" in listed


def test_a_claim_by_arithmetic_needs_no_runs(mobilenet: Command):
    shown = mobilenet("reproduce", "table2").stdout
    assert "confirmed: 11 of 11 values agree" in shown and "computed, commit" in shown


def test_runs_become_rows(reproduced: tuple[Path, str], tmp_path: Path):
    workdir, _ = reproduced
    for name in ("ablations", "reference"):
        (tmp_path / "experiments").mkdir(exist_ok=True)
        (tmp_path / "experiments" / name).symlink_to(ROOT / "experiments" / name)
    results = tmp_path / "experiments" / "results"
    results.mkdir()
    made = reproduce.add(tmp_path, workdir / "smoke", "smoke", "two steps")
    assert rows.read(results / "ablations.csv") == made
    assert [row["claim"] for row in made] == ["fig6a", "fig6a"]  # the others were not run
    linear = next(row for row in made if row["claim"] == "fig6a")
    assert (linear["arm"], linear["seeds"], linear["epochs"]) == ("linear", "0 1", "0.5")
    assert len(list((results / claims.logs_of("smoke")).glob("*/metrics.jsonl"))) == 4
    # The committed logs give what the run directories gave.
    again = reproduce.collect(ROOT, results / claims.logs_of("smoke"), "smoke")
    claim, arms, contrast = again[0]
    logs = claims.logs_of("smoke")
    assert claims.make_rows(
        claim, "smoke", arms, contrast, logs=logs, remarks="two steps"
    ) == [row for row in made if row["claim"] == "fig6a"]  # fmt: skip
    assert linear["difference"] in claims.markdown(made).replace("+", "")


def test_other_recipes_are_marked(reproduced: tuple[Path, str]):
    workdir, _ = reproduced
    # Where the data lies and how often is logged are not part of a point.
    same = {"log.every_steps": "7", "data.data_dir": str(workdir)}
    other = {"train.label_smoothing": "0.1"}
    trials = [
        reproduce.load_trial(ROOT, claims.CLAIMS[0].experiment, "smoke", workdir, overrides)
        for overrides in ({}, same, other)
    ]
    keys = [{point.key for point in trial.points} for trial in trials]
    assert keys[0] == keys[1] and not keys[0] & keys[2]
    assert trials[1].points[0].config.data.data_dir == str(workdir)


def test_runs_that_did_not_finish_fail_the_command(mobilenet: Command, tmp_path: Path):
    override = "--config.train.label_smoothing=0.1"
    points = tmp_path / "smoke" / "points"
    experiment = next(claim.experiment for claim in claims.CLAIMS if claim.name == "se")
    trial = reproduce.load_trial(
        ROOT, experiment, "smoke", points, {"train.label_smoothing": "0.1"}
    )
    for arm in trial.arms.values():
        for run in arm.runs.values():
            run.mkdir(parents=True)
            rundir.write_json(run / "summary.json", {"status": "diverged", "error": "at step 1"})
    failed = mobilenet(
        "reproduce", "se", "--scale=smoke", f"--workdir={tmp_path}", override, ok=False
    )
    assert failed.returncode == 1, failed.stderr
    shown = " ".join(failed.stdout.split())
    assert "4 points: 4 diverged" in shown and "not finished: SE, seeds 0 1: diverged" in shown
    assert "inconclusive: an arm has no finished run: SE, seeds 0 1: diverged" in shown
    # It is not the scale's own recipe, and says so.
    assert "with train.label_smoothing=0.1" in shown


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("fig6",), "'fig6' is no claim; there are fig6a, fig6b_expansion"),
        (("fig6a",), "--scale is missing; fig6a needs runs"),
        (("fig6a", "--scale=huge"), "--scale is 'huge'; allowed are smoke, cifar, full, imagenet"),
        (("fig6a", "--scale=smoke"), "--workdir is missing"),
        (("fig6a", "se", "--scale=smoke"), "'se' is one claim too many"),
        (("fig6a", "--scale=smoke", "--workdir=w", "--jobs=0"), "--jobs is 0; it must be 1"),
        (("--workdir=w",), "--scale is missing: --workdir holds a directory a scale"),
        (("--root=nowhere",), "nowhere/experiments/reference does not exist; run in the checkout"),
        (("fig6a", "--config.model.with=1", "--scale=smoke", "--workdir=w"), "did you mean"),
    ],
)
def test_commands_that_cannot_run_are_refused(
    args: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    from mobilenet.cli import common

    monkeypatch.chdir(ROOT)
    assert common.run("reproduce", reproduce, list(args)) == 2
    assert message in capsys.readouterr().err
