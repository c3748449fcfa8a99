"""Claims: verdicts on constructed runs, arithmetic on the real network, committed rows."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mobilenet.experiment import load_module
from mobilenet.report import analytic, claims, reproduction, rows
from mobilenet.report.claim_list import CLAIMS, Claim
from mobilenet.report.claims import Variant, judge
from mobilenet.report.results import ResultError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
REFERENCE = ROOT / "experiments" / "reference"
DIGITS = RESULTS / "logs" / "baselines" / "digits" / "seed0"

HIGHER = Claim("better", "a paper", "One is better.", "higher", "higher", "e.py")
SAME = Claim("same", "a paper", "Both are the same.", "same", "equivalent", "e.py", margin=1.0)
WORSE = {0: 70.0, 1: 71.0, 2: 72.0}


def plus(*differences: float) -> dict[int, float]:
    return {seed: WORSE[seed] + d for seed, d in enumerate(differences)}


# ------------------------------------------------------------------------------------ verdicts


def test_a_clear_win_is_confirmed():
    verdict = judge(HIGHER, plus(2.0, 2.5, 3.0), WORSE)
    assert verdict.verdict == "confirmed" and verdict.seeds == (0, 1, 2)
    assert verdict.difference is not None
    # t(2, 0.975) = 4.302653, std 0.5.
    assert verdict.difference.low == pytest.approx(2.5 - 4.302653 * 0.5 / math.sqrt(3), abs=1e-5)
    assert verdict.text.startswith("+2.50 points [+1.26, +3.74], 3 seeds; detectable at 80 % power")


def test_a_clear_loss_is_a_contradiction():
    verdict = judge(HIGHER, plus(-2.0, -2.5, -3.0), WORSE)
    assert verdict.verdict == "contradicted" and "below zero" in verdict.reason


def test_an_overlap_is_inconclusive_and_says_what_would_have_been_seen():
    verdict = judge(HIGHER, plus(1.0, -1.0, 0.6), WORSE)
    assert verdict.verdict == "inconclusive" and "covers zero" in verdict.reason
    assert verdict.difference is not None
    # More than the half width: a difference at its edge is found in half of the cases only.
    half = verdict.difference.high - verdict.difference.mean
    assert verdict.detectable > half and f"{verdict.detectable:.2f}" in verdict.text


def test_pairs_of_seeds_are_compared_not_means():
    # Seeds spread by 20 points, the difference by a tenth: unpaired it would drown.
    spread = {0: 50.0, 1: 60.0, 2: 70.0}
    better = {seed: value + 1 + 0.05 * seed for seed, value in spread.items()}
    assert judge(HIGHER, better, spread).verdict == "confirmed"


def test_one_seed_is_never_enough():
    verdict = judge(HIGHER, {0: 99.0}, {0: 1.0})
    assert verdict.verdict == "inconclusive" and "one seed" in verdict.reason
    assert math.isnan(verdict.detectable) and "no interval" in verdict.text


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({}, {}, "not run"),
        ({0: 1.0}, {}, "a variant has no finished run"),
        ({0: 1.0}, {1: 1.0}, "a variant has no finished run"),
    ],
)
def test_missing_variants_are_inconclusive(
    first: Mapping[int, float], second: Mapping[int, float], reason: str
):
    verdict = judge(HIGHER, first, second)
    assert (verdict.verdict, verdict.reason) == ("inconclusive", reason)
    assert verdict.difference is None and verdict.text == "no seed in both variants"


def test_a_run_that_failed_makes_it_inconclusive_whatever_the_rest_says():
    verdict = judge(HIGHER, plus(9.0, 9.1), WORSE, ["ReLU6, seed 2: diverged"])
    assert verdict.verdict == "inconclusive" and "ReLU6, seed 2: diverged" in verdict.reason
    assert verdict.difference is not None and verdict.difference.low > 0


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ((0.1, 0.0, -0.1), "confirmed"),
        ((2.0, 2.1, 2.2), "contradicted"),
        ((-2.0, -2.1, -2.2), "contradicted"),
        ((0.9, 0.2, -0.9), "inconclusive"),
        ((0.9, 1.0, 1.1), "inconclusive"),
    ],
)
def test_equivalence_needs_the_interval_inside_the_margin(
    differences: tuple[float, ...], expected: str
):
    assert judge(SAME, plus(*differences), WORSE).verdict == expected


def test_arithmetic_is_not_judged_by_runs():
    with pytest.raises(ValueError, match="table1 is judged by 'analytic'"):
        judge(next(c for c in CLAIMS if c.name == "table1"), WORSE, WORSE)


# ----------------------------------------------------------------------------- claims as data

# Items of experiments/reference/ablations.csv -> the claims that check them.
COVERED = {
    "Figure 6a linear bottleneck": ("fig6a",),
    "Figure 6b shortcut placement": ("fig6b_expansion",),
    "Figure 6b no shortcut": ("fig6b_none",),
    "expansion rate": ("expansion_5_to_10",),
    "expansion below 1": ("expansion_below_1",),
    "width below 1": ("head_width", "head"),
    "Figure 5 trade-off": ("fig5_width", "fig5_resolution", "fig5_range"),
    "block cost": ("block_cost",),
    "number of blocks": ("bottlenecks",),
    "shortcut rule": ("shortcuts",),
    "t-way split": ("t_way_split",),
    # Of another code, and of quantisation: no claim about this network's ablations.
    "slim split_expansion": (),
    "ReLU6 and quantization": (),
}


def test_claims_cover_the_reference_and_mark_what_was_recalled():
    names = [claim.name for claim in CLAIMS]
    assert len(set(names)) == len(names)
    known = {claim.name: claim for claim in CLAIMS}
    table = rows.read(REFERENCE / "ablations.csv")
    assert {row["item"] for row in table} == set(COVERED)
    for row in table:
        for name in COVERED[row["item"]]:
            assert known[name].recalled == (row["verified"] == "memory"), name


def test_every_claim_can_be_checked():
    for claim in CLAIMS:
        if claim.check == "analytic":
            assert claim.name in analytic.CHECKS and not claim.experiment
        else:
            assert claim.check in ("higher", "equivalent")
            assert (claim.margin > 0) == (claim.check == "equivalent")
            module = load_module(str(ROOT / claim.experiment))
            assert claim.name in module.comparisons("cifar")
            assert f"{claim.name}" in (module.__doc__ or "")
    assert set(analytic.CHECKS) == {c.name for c in CLAIMS if c.check == "analytic"}


def test_published_differences_are_those_of_the_reference():
    known = {claim.name: claim.published for claim in CLAIMS}
    table = rows.read(REFERENCE / "imagenet_checkpoints.csv")
    slim = {
        (row["width"], row["resolution"]): float(row["top1"])
        for row in table
        if "MobileNet V2 ImageNet checkpoints" in row["source"] and row["precision"] == "float"
    }
    width = slim["1.0", "224"] - slim["0.35", "224"]
    resolution = slim["1.0", "224"] - slim["1.0", "96"]
    assert f"{width:+.1f} points" in known["fig5_width"]
    assert f"{resolution:+.1f} points" in known["fig5_resolution"]
    top1 = {
        row["attention"]: float(row["result"])
        for row in rows.read(REFERENCE / "attention_se.csv")
        if "CoordAttention" in row["source"] and row["dataset"] == "ImageNet"
    }
    assert f"{top1['SE'] - top1['none']:+.1f} points" in known["se"]
    assert f"{top1['none']} to {top1['SE']}" in known["se"]


# --------------------------------------------------------------------------------- arithmetic


@pytest.fixture(scope="module")
def findings() -> dict[str, analytic.Finding]:
    return reproduction.findings(ROOT)


def test_arithmetic_confirms_the_paper_but_where_it_contradicts_itself(
    findings: dict[str, analytic.Finding],
):
    # The four are known: 6.9 M parameters, 7 M multiply-adds, 19 bottlenecks, Table 3's channels.
    contradicted = {name for name, f in findings.items() if f.verdict == "contradicted"}
    assert contradicted == {"table3", "table4_params", "fig5_range", "bottlenecks"}
    counts = {name: (f.matched, f.compared) for name, f in findings.items()}
    assert counts["table2"] == (11, 11) and counts["checkpoint_costs"] == (22, 22)
    assert counts["table3"] == (4, 7) and counts["table4_params"] == (1, 2)
    assert counts["t_way_split"] == (161, 161) and counts["block_cost"] == (12, 12)
    assert findings["se_params"].ours == "3,888,760"


class Changed:
    """The network with a mistake in it."""

    def __init__(self, **model: Any) -> None:
        self._right, self._model = reproduction.Measure(), model

    def network(self, resolution: int = 224, **model: Any) -> analytic.Network:
        return self._right.network(resolution, **{**self._model, **model})

    def split_peak(self, parts: int | None, resolution: int, **model: Any) -> int:
        return self._right.split_peak(parts, resolution, **{**self._model, **model})

    def split_difference(self, parts: int) -> tuple[float, bool]:
        return 1e-3, False


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("table1", {"expand_always": True}),
        ("table2", {"stage_strides": (1, 1, 2, 2, 1, 2, 1)}),
        ("table2", {"expansion_ratio": 5.0}),
        ("table4_macs", {"kernel_size": 5}),
        ("checkpoint_costs", {"divisor": 4}),
        ("block_cost", {"se_ratio": 0.25}),
        ("shortcuts", {"shortcut": "none"}),
        ("head_width", {"shrink_head": True}),
        ("se_params", {"se_base": "expanded"}),
        ("t_way_split", {"stem_features": 40}),
    ],
)
def test_arithmetic_sees_mistakes(name: str, mistake: dict[str, Any]):
    measure: Any = Changed(**mistake)
    if name == "se_params":
        # The check asks for its own base: the mistake must come after it.
        measure.network = lambda resolution=224, **model: measure._right.network(
            resolution, **{**model, **mistake}
        )
    assert analytic.CHECKS[name](measure, REFERENCE).verdict == "contradicted"


def test_missing_reference_files_are_named(tmp_path: Path):
    with pytest.raises(analytic.MissingReference, match="architecture.csv has no row with any"):
        analytic.CHECKS["table2"](reproduction.Measure(), tmp_path)


# ------------------------------------------------------------------------------- runs and rows


def make_run(path: Path, seed: int, top1: float, status: str = "done") -> Path:
    """A run directory like those that training leaves, with a test accuracy (fraction)."""
    path.mkdir(parents=True)
    summary = json.loads((DIGITS / "summary.json").read_text())
    summary |= {"status": status, "seed": seed, "test": {**summary["test"], "top1": top1}}
    config = json.loads((DIGITS / "config.json").read_text())
    config["seed"] = seed
    config["data"]["data_dir"] = "/somewhere/data"
    point = {"key": path.name, "group": "g", "overrides": {"seed": seed}, "error": None}
    for name, value in (("summary", summary), ("config", config), ("point", point)):
        (path / f"{name}.json").write_text(json.dumps(value))
    shutil.copyfile(DIGITS / "metrics.jsonl", path / "metrics.jsonl")
    return path


@pytest.fixture
def variants(tmp_path: Path) -> dict[str, Variant]:
    """The claim's two variants with three seeds, and one more variant with one."""
    scores = {
        "linear": {0: 0.92, 1: 0.93, 2: 0.94},
        "ReLU6": {0: 0.90, 1: 0.905, 2: 0.91},
        "other": {0: 0.5},
    }
    return {
        name: Variant(
            name,
            {"model.bottleneck_activation": name},
            {
                seed: make_run(tmp_path / "points" / f"{name}{seed}", seed, top1)
                for seed, top1 in seeds.items()
            },
        )
        for name, seeds in scores.items()
    }


FIG6A = next(claim for claim in CLAIMS if claim.name == "fig6a")
CONTRAST = ("linear", "ReLU6")


def measured(variants: Mapping[str, Variant]) -> dict[str, claims.Measured]:
    return {name: claims.measure(variant) for name, variant in variants.items()}


def test_rows_hold_variants_differences_and_the_verdict(variants: dict[str, Variant]):
    first, second, third = claims.make_rows(FIG6A, "cifar", measured(variants), CONTRAST)
    assert (first["role"], second["role"], third["role"]) == ("claimed", "compared", "")
    assert (first["top1_mean"], first["top1_std"], first["seeds"]) == ("93.00", "1.00", "0 1 2")
    assert (first["low"], first["high"]) == ("90.52", "95.48")
    assert (first["baseline"], first["difference"]) == ("ReLU6", "2.50")
    assert (first["difference_low"], first["difference_high"]) == ("1.26", "3.74")
    assert first["verdict"] == "confirmed" and float(first["detectable"]) > 0
    assert second["verdict"] == second["difference"] == ""
    # One seed: a difference, but no interval and no verdict of its own.
    assert (third["difference"], third["difference_low"], third["verdict"]) == ("-40.00", "", "")
    assert first["commit"] == json.loads((DIGITS / "summary.json").read_text())["commit"]
    assert first["config"] == "experiments/ablations/bottleneck.py:cifar"


def test_failed_and_missing_runs_are_told(variants: dict[str, Variant]):
    run = variants["ReLU6"].runs[2]
    point = json.loads((run / "point.json").read_text())
    (run / "summary.json").unlink()
    (run / "point.json").write_text(json.dumps({**point, "error": "OutOfMemory: no memory"}))
    row = claims.make_rows(FIG6A, "cifar", measured(variants), CONTRAST)[0]
    assert row["verdict"] == "inconclusive"
    assert row["reason"] == "runs are missing: ReLU6, seed 2: failed"
    assert row["difference"] == "2.25"  # of the two seeds that are left
    shutil.rmtree(variants["ReLU6"].runs[0])
    reason = claims.make_rows(FIG6A, "cifar", measured(variants), CONTRAST)[0]["reason"]
    assert reason == "runs are missing: ReLU6, seed 0: pending, ReLU6, seed 2: failed"


def test_variants_that_nobody_ran_are_not_run(tmp_path: Path):
    nothing = {n: Variant(n, {}, {s: tmp_path / f"{n}{s}" for s in range(3)}) for n in CONTRAST}
    found = measured(nothing)
    verdict = claims.judge_variants(FIG6A, found["linear"], found["ReLU6"])
    assert (verdict.verdict, verdict.reason) == ("inconclusive", "not run")
    # Nor is a claim of which one variant is another claim's.
    shared = Variant("linear", {}, {0: make_run(tmp_path / "linear", 0, 0.9)})
    half = {"linear": claims.measure(shared), "ReLU6": found["ReLU6"]}
    assert claims.judge_variants(FIG6A, half["linear"], half["ReLU6"]).reason == "not run"
    with pytest.raises(ResultError, match="No claim was run at scale cifar"):
        claims.add(tmp_path, "cifar", [(FIG6A, found, CONTRAST)])


def test_runs_that_do_not_belong_are_refused(variants: dict[str, Variant]):
    run = variants["linear"].runs[1]
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "seed": 7}))
    with pytest.raises(ResultError, match="has seed 7, and its variant expects 1"):
        claims.measure(variants["linear"])
    (run / "config.json").write_text(json.dumps(config))
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "params": 1}))
    with pytest.raises(ResultError, match="'linear' differ in parameters"):
        claims.make_rows(FIG6A, "cifar", measured(variants), CONTRAST)
    summary.pop("test")
    (run / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ResultError, match="has no test metrics"):
        claims.measure(variants["linear"])


def test_committed_logs_give_the_same_rows_again(variants: dict[str, Variant], tmp_path: Path):
    # An unfinished run is committed too: the verdict depends on it.
    (variants["other"].runs[0] / "summary.json").write_text('{"status": "diverged"}')
    results_dir = tmp_path / "results"
    results_dir.mkdir()
    made = claims.add(results_dir, "cifar", [(FIG6A, measured(variants), CONTRAST)], "a remark")
    assert rows.read(results_dir / "ablations.csv") == made
    assert made[2]["top1_mean"] == "" and made[0]["remarks"] == "a remark"
    logs = results_dir / claims.logs_of("cifar")
    assert sorted(path.name for path in logs.iterdir()) == sorted(
        f"{name}{seed}" for name, variant in variants.items() for seed in variant.runs
    )
    config = json.loads((logs / "linear0" / "config.json").read_text())
    assert config["data"]["data_dir"] == "" and config["model"]["width_multiplier"] == 0.75
    again = {
        name: Variant(
            name, variant.overrides, {s: logs / run.name for s, run in variant.runs.items()}
        )
        for name, variant in variants.items()
    }
    assert made == claims.make_rows(
        FIG6A, "cifar", measured(again), CONTRAST,
        logs=claims.logs_of("cifar"), remarks="a remark",
    )  # fmt: skip


def test_scales_are_replaced_one_by_one(variants: dict[str, Variant], tmp_path: Path):
    found = [(FIG6A, measured(variants), CONTRAST)]
    for scale in ("full", "cifar", "full"):
        claims.add(tmp_path, scale, found)
    assert [row["scale"] for row in rows.read(tmp_path / "ablations.csv")] == (
        ["cifar"] * 3 + ["full"] * 3
    )


# ---------------------------------------------------------------------------- committed results

COMMITTED = rows.read(RESULTS / "ablations.csv")


@pytest.mark.parametrize("scale", sorted({row["scale"] for row in COMMITTED}))
def test_committed_rows_follow_from_their_logs(scale: str):
    expected = [row for row in COMMITTED if row["scale"] == scale]
    again = [
        row
        for claim, variants, comparison in reproduction.collect(
            ROOT, RESULTS / claims.logs_of(scale), scale
        )
        if claims.was_run(variants, comparison)
        for row in claims.make_rows(
            claim, scale, variants, comparison,
            logs=claims.logs_of(scale), remarks=expected[0]["remarks"],
        )
    ]  # fmt: skip
    key = [claim.name for claim in CLAIMS].index
    assert sorted(again, key=lambda row: key(row["claim"])) == expected
    for row in expected:
        assert "dirty" not in row["commit"] and row["commit"] != "unknown"
