"""Compressed runs from the command line: masks across kills, shrunk runs everywhere, teachers."""

import dataclasses
import importlib.util
import json
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from support import TINY, Command, metric_rows, start, summary, tiny, write_run

from mobilenet import build, compression, rundir
from mobilenet import config as config_lib
from mobilenet.cli.main import main
from mobilenet.cli.quantize import ptq_config
from mobilenet.compress import pruning
from mobilenet.config import ConfigError
from mobilenet.quantize import layers
from mobilenet.report import comparison, rows
from mobilenet.train import loop, steps
from mobilenet.train.checkpoints import Checkpoints, read_checkpoint

PRUNING = "--config.compress.pruning."
PRUNED = (
    f"{PRUNING}method=magnitude", f"{PRUNING}sparsity=0.6", f"{PRUNING}distribution=erk",
    f"{PRUNING}schedule=cubic", f"{PRUNING}start_epoch=0.5", f"{PRUNING}end_epoch=1.5",
    f"{PRUNING}every_steps=5", "--config.train.num_epochs=2.0",
)  # fmt: skip
STEPS = 32


@pytest.fixture(autouse=True)
def embedded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="module")
def pruned(mobilenet: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an undisturbed pruned run."""
    workdir = tmp_path_factory.mktemp("pruned") / "run"
    mobilenet("train", f"--config={TINY}", f"--workdir={workdir}", *PRUNED)
    return workdir


def train(workdir: Path, **overrides: Any) -> dict[str, Any]:
    """Trains in this process."""
    config = tiny(train__num_epochs=0.25, **overrides)
    return loop.train(build.build(config, workdir), workdir)


def items(workdir: Path) -> dict[str, Any]:
    restored = Checkpoints(workdir / "checkpoints", read_only=True).read_newest()
    assert restored is not None
    return restored.items


def test_a_pruned_run_is_exactly_sparse_and_says_so(pruned: Path):
    found = summary(pruned)["sparsity"]
    # Expansion and projections [8, 8], [8, 16], [16, 8], the head [8, 16], the classifier [16, 10].
    assert found["weights"] == 64 + 128 + 128 + 128 + 160
    assert found["zeros"] == round(0.6 * found["weights"])
    assert set(found["tensors"]) == {
        "blocks_0_0/project", "blocks_1_0/expand", "blocks_1_0/project", "head", "classifier",
    }  # fmt: skip
    logged = [(r["step"], r["sparsity"]) for r in metric_rows(pruned) if r["split"] == "train"]
    rising = [value for _, value in logged]
    assert rising[0] == 0.0 and rising == sorted(rising)
    assert rising[-1] == pytest.approx(found["zeros"] / found["weights"], abs=1e-6)
    state = items(pruned)
    for path, mask in pruning.flatten(state["opt_state"]["masks"]).items():
        for params in (state["params"], state["ema"]["params"]):
            kernel = pruning.flatten(params)[path]
            assert (kernel[~mask] == 0).all() and (kernel[mask] != 0).all(), path
    assert int(state["opt_state"]["changes"]) == 5  # at 8, 13, 18, 23 and the end, 24


def test_a_killed_pruned_run_ends_in_the_same_bits(
    cache: Path, mobilenet: Command, pruned: Path, tmp_path: Path
):
    workdir = tmp_path / "killed"
    process = start(cache, "train", f"--config={TINY}", f"--workdir={workdir}", *PRUNED)
    checkpoints = workdir / "checkpoints"
    while process.poll() is None:
        if checkpoints.is_dir() and any(p.name in ("15", "16") for p in checkpoints.iterdir()):
            break  # between two changes of the masks
        time.sleep(0.001)
    process.kill()
    process.communicate()
    mobilenet("train", f"--workdir={workdir}")
    ours, theirs = items(workdir), items(pruned)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert metric_rows(workdir) == metric_rows(pruned)
    assert summary(workdir)["test"] == summary(pruned)["test"]


@pytest.mark.slow
def test_a_pruned_run_is_quantised_and_its_zeros_stay(pruned: Path, tmp_path: Path):
    target = tmp_path / "w4a8"
    adaround = ("weights.bits=4", "weights.ranges=fixed", "adaround_steps=20")
    flags = [f"--config.quantize.{flag}" for flag in adaround]
    assert main(["quantize", f"--workdir={pruned}", f"--to={target}", *flags]) == 0
    before = pruning.flatten(read_checkpoint(pruned, "result").eval_variables["params"])
    after = pruning.flatten(read_checkpoint(target, "result").eval_variables["params"])
    for path, mask in pruning.flatten(items(pruned)["opt_state"]["masks"]).items():
        assert (before[path][~mask] == 0).all() and (after[path][~mask] == 0).all(), path


def test_quantising_needs_nothing_that_only_training_needs(tmp_path: Path):
    run = write_run(
        tmp_path / "run",
        0.9,
        {
            "compress.pruning.method": "rigl", "compress.pruning.sparsity": 0.5,
            "compress.pruning.end_epoch": 5.0, "compress.pruning.rules": (("head", "spare"),),
            "compress.distillation.teacher": str(tmp_path / "gone"),
            "compress.distillation.transfer": "attention", "finetune.train_from": "",
            "train.global_batch_size": 3, "train.patience": 4, "schedule.warmup_epochs": 1.0,
        },
    )  # fmt: skip
    config = ptq_config(run, {})
    config_lib.validate(config, devices=2)
    assert config.compress.distillation.teacher == "" and config.train.num_epochs == 0
    assert config.compress.pruning.rules == (("head", "spare"),)  # whose zeros are counted
    with pytest.raises(ConfigError, match="pruning happens in training"):
        config_lib.validate(ptq_config(run, {"compress.pruning.method": "magnitude"}))


@pytest.mark.slow
def test_zeros_survive_quantised_training(pruned: Path, tmp_path: Path):
    found = train(
        tmp_path / "qat", pretrained=str(pruned), compress__pruning__method="zeros",
        quantize__weights__bits=4, quantize__activations__bits=8,
    )  # fmt: skip
    assert found["sparsity"]["zeros"] == summary(pruned)["sparsity"]["zeros"]
    variables = read_checkpoint(tmp_path / "qat", "result").eval_variables
    start_from = read_checkpoint(pruned, "result").eval_variables["params"]
    config = rundir.read_config(tmp_path / "qat")
    rule = config_lib.quantization_rules(config).weights
    for path in pruning.flatten(items(pruned)["opt_state"]["masks"]):
        kernel = np.asarray(pruning.flatten(variables["params"])[path])
        before = np.asarray(pruning.flatten(start_from)[path]) == 0
        np.testing.assert_array_equal(kernel == 0, before)
        grid = layers.weight_grid(kernel, np.float32(4), rule)
        rounded = np.asarray(layers.numerics.fake_quantize(jax.numpy.asarray(kernel), grid))
        assert (rounded[before] == 0).all()  # the symmetric grid has a code for 0


@pytest.mark.slow
def test_a_shrunk_run_is_a_run_like_any_other(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    small = tmp_path / "small"
    assert main(["shrink", f"--workdir={finished}", f"--to={small}", "--params=0.9"]) == 0
    assert "blocks_1_0      16 -> 8" in capsys.readouterr().out
    assert rundir.read_config(small).model.expanded_features == (8, 8)
    assert summary(small)["params"] < 0.9 * summary(finished)["params"]
    assert main(["evaluate", f"--workdir={small}"]) == 0
    picture = tmp_path / "seven.png"
    Image.fromarray(np.full((8, 8), 99, np.uint8)).save(picture)
    assert main(["predict", f"--workdir={small}", str(picture)]) == 0
    capsys.readouterr()
    assert main(["cost", f"--workdir={small}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["params"] == summary(small)["params"]
    file = tmp_path / "small.safetensors"
    assert main(["convert", f"--workdir={small}", f"--to={file}"]) == 0
    if importlib.util.find_spec("ai_edge_litert"):
        capsys.readouterr()
        assert main(["export", f"--workdir={small}", "--to=litert", "--verify"]) == 0
        assert "litert (builtin)" in capsys.readouterr().out
    # The tuned run inherits the widths, is pruned besides, and is quantised afterwards.
    tuned = train(
        tmp_path / "tuned", pretrained=str(small), compress__pruning__method="magnitude",
        compress__pruning__sparsity=0.5, compress__pruning__pattern="2:4",
    )  # fmt: skip
    assert tuned["params"] == summary(small)["params"] and tuned["sparsity"]["prunable"] == 0.5
    left = compression.describe_run(tmp_path / "tuned")
    assert left["sparsity"]["prunable"] == 0.5
    assert left["nonzero_params"] < left["params"] and left["nonzero_macs"] < left["macs"]
    assert (
        left["bytes"]["sparse"]
        < left["bytes"]["dense"]
        == 4
        * (left["params"] + sum(np.size(v) for v in jax.tree.leaves(items(small)["batch_stats"])))
    )
    assert main(["shrink", f"--workdir={tmp_path / 'tuned'}"]) == 0
    assert "sparsity: 50.00 % of prunable weights" in capsys.readouterr().out
    # Once more: cutting and training in turn.
    again = [f"--workdir={tmp_path / 'tuned'}", f"--to={tmp_path / 'smaller'}"]
    assert main(["shrink", *again, "--params=0.95", "--divisor=4"]) == 0
    assert rundir.read_config(tmp_path / "smaller").model.expanded_features == (8, 4)
    assert main(["evaluate", f"--workdir={tmp_path / 'smaller'}"]) == 0


@pytest.mark.slow
def test_rounds_cut_and_train_in_turns_and_continue(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    target = tmp_path / "small"
    command = [
        "shrink", f"--workdir={finished}", f"--to={target}", "--params=0.75", "--divisor=4",
        "--rounds=2", f"--config={TINY}", "--config.train.num_epochs=0.25",
    ]  # fmt: skip
    first = compression.rounds_to(finished, budget="params", amount=0.75, rounds=2, divisor=4)
    assert main(command) == 0
    out = capsys.readouterr().out
    assert f"run directory: {target}" in out
    between, cut = target / "rounds/1/trained", target / "rounds/2/cut"
    widths = [
        rundir.read_config(run).model.expanded_features for run in (finished, between, target)
    ]
    assert widths[0] == () and widths[1][1] > widths[2][1] == 4
    whole, half = summary(finished)["params"], summary(between)["params"]
    assert whole > first[0] >= half > first[1] == int(0.75 * whole) >= summary(target)["params"]
    # Each round goes on from the weights that the one before was trained to.
    assert summary(between)["step"] == summary(target)["step"] == 4
    assert rundir.read_config(target).pretrained == str(cut)
    heads = [
        read_checkpoint(run, "result").eval_variables["params"]["head"] for run in (between, cut)
    ]
    np.testing.assert_array_equal(*(head["conv"]["kernel"] for head in heads))
    # What is done stays as it is, and what is missing is made.
    result = items(target)
    for name in ("summary.json", "config.json"):
        (target / name).unlink()
    shutil.rmtree(target / "checkpoints")
    before = (cut / "summary.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (cut / "summary.json").stat().st_mtime_ns == before
    jax.tree.map(np.testing.assert_array_equal, items(target), result)
    assert main([*command, "--score=bn_scale"]) == 2
    assert "was begun with score l1, now bn_scale; give another --to" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_left_of_runs_becomes_a_table(
    pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    sweep, root = tmp_path / "sweep", tmp_path / "checkout"
    shutil.copytree(pruned, sweep / "points" / "a")
    point = {"group": "g", "overrides": {"seed": 0, "model.dropout_rate": 0.1}, "error": None}
    rundir.write_json(sweep / "points" / "a" / "point.json", point)
    # As `mobilenet compare` leaves it.
    speed = {"run": "points/a", "latency_ms": "1.25", "images_per_second": "2400", "batch_size": 64}
    fields = [*comparison.FIELDS]
    rows.write(sweep / "comparison.csv", fields, [dict.fromkeys(fields, "") | speed])
    (root / "experiments/results").mkdir(parents=True)
    file = tmp_path / "named.py"
    file.write_text(
        "from mobilenet.config import get_config\n"
        "def variants(arg=''):\n    return {'60 %': {'model.dropout_rate': 0.1}}\n"
    )
    flags = ["compression", str(sweep), "--row=mine", f"--config={file}"]
    assert main(["report", f"--root={root}", *flags]) == 0
    (row,) = rows.read(root / "experiments/results/compression.csv")
    left = compression.describe_run(pruned)
    assert float(row["sparsity"]) == pytest.approx(60, abs=0.2)
    assert (row["params"], row["macs"]) == (str(left["params"]), str(left["macs"]))
    assert int(row["nonzero_params"]) == left["nonzero_params"] < left["params"]
    assert int(row["sparse_gzip_bytes"]) == left["bytes"]["sparse_gzip"] < left["bytes"]["dense"]
    page = (root / "experiments/results/compression.md").read_text()
    assert "| 60 % |" in page and "| 1.25 |" in page
    assert "(figures/compression_full.svg)" in page
    assert (root / "experiments/results/figures/compression_full.svg").is_file()
    logs = root / "experiments/results/logs/compression/mine/a"
    assert json.loads((logs / "compression.json").read_text())["macs"] == left["macs"]
    (sweep / "points" / "a" / "summary.json").unlink()
    assert main(["report", f"--root={root}", *flags]) == 2
    assert "finish" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to=x", "--macs=0.01"], "raise the budget to at least that, or start from a smaller"),
        (["--to=x", "--macs=0.5", "--score=l3"], "allowed are l1, bn_scale, taylor"),
        (["--to=x"], "Give --to=NEW_RUN with either --macs or --params"),
        (["--macs=0.5"], "Give --to=NEW_RUN with either --macs or --params"),
        (["--to=x", "--macs=-1"], "it must be a fraction or a number above 0"),
        (["--to=x", "--macs=0.5", "--rounds=2"], "Give --config=FILE, which says how"),
        (["--to=x", "--macs=0.5", "--config.seed=1"], "Give --config=FILE, which says how"),
        ([f"--config={TINY}"], "--config trains what is cut; give --to"),
        (
            ["--to=x", "--macs=0.01", "--rounds=2", f"--config={TINY}"],
            "raise the budget to at least that, or start from a smaller",
        ),
        (
            ["--to=x", "--macs=0.9", f"--config={TINY}", "--config.pretrained=y"],
            "each round starts from what it has cut",
        ),
    ],
)
def test_budgets_that_cannot_be_met_are_one_sentence(
    arguments: list[str],
    message: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert main(["shrink", f"--workdir={finished}", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_taylor_scores_come_from_training_pictures(finished: Path, tmp_path: Path):
    done = compression.shrink_run(
        finished, tmp_path / "small", budget="params", amount=0.9, score="taylor", examples=32
    )
    assert done.widths == {"blocks_1_0": (16, 8)}


def numbers(**overrides: Any) -> Any:
    return tiny(compress__pruning__method="magnitude", **overrides)


def test_sparsities_and_schedules_share_a_program_and_can_be_lanes():
    first = numbers(compress__pruning__sparsity=0.5)
    second = numbers(
        compress__pruning__sparsity=0.9, compress__pruning__schedule="cubic",
        compress__pruning__end_epoch=2.0, compress__pruning__every_steps=7,
    )  # fmt: skip
    assert build._step_config(first) == build._step_config(second)
    assert build.lane_key(first) == build.lane_key(second)
    erk = numbers(compress__pruning__sparsity=0.5, compress__pruning__distribution="erk")
    assert build._step_config(first) == build._step_config(erk)
    other = numbers(compress__pruning__sparsity=0.5, compress__pruning__distribution="global")
    assert build._step_config(first) != build._step_config(other)
    taught = [
        tiny(compress__distillation__teacher="a", compress__distillation__temperature=t)
        for t in (1.0, 4.0)
    ]
    assert build.lane_key(taught[0]) == build.lane_key(taught[1])


@pytest.mark.slow
def test_sparsities_train_as_lanes_of_one_program(tmp_path: Path):
    configs, workdirs = [], []
    for sparsity in (0.5, 0.75):
        config = numbers(
            compress__pruning__sparsity=sparsity, train__num_epochs=0.25, seed=len(configs)
        )
        config.compress.pruning.start_epoch = 0.0625 * (1 + len(configs))  # steps of their own
        configs.append(config)
        workdirs.append(tmp_path / f"{sparsity:g}")
    found = loop.train_lanes(build.build_lanes(configs, workdirs), workdirs)
    assert [lane["sparsity"]["prunable"] for lane in found] == [0.5, 0.75]
    masks = [pruning.flatten(items(w)["opt_state"]["masks"]) for w in workdirs]
    for path, mask in masks[1].items():
        assert mask.sum() == mask.size // 4 and masks[0][path].sum() == mask.size // 2


def test_rules_that_match_nothing_are_refused_before_compiling(tmp_path: Path):
    rules = (("blocks_9_0/.*", "spare"),)
    config = numbers(compress__pruning__sparsity=0.5, compress__pruning__rules=rules)
    with pytest.raises(ConfigError, match="the rule 'blocks_9_0/.*' applies to no module"):
        build.build(config, tmp_path)


def test_a_run_that_cannot_begin_leaves_nothing_for_the_corrected_one_to_meet(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["train", f"--config={TINY}", f"{PRUNING}method=magnitude", f"{PRUNING}sparsity=0.5"]
    wrong = f"{PRUNING}rules=(('classifer', 'prune'),)"
    assert main([*command, f"--workdir={tmp_path / 'new'}", wrong]) == 2
    assert "the rule 'classifer' applies to no module" in capsys.readouterr().err
    assert not list((tmp_path / "new").glob("*.json"))
    # A run that is there stays.
    run = shutil.copytree(finished, tmp_path / "run")
    before = {path.name: path.read_text() for path in run.glob("*.json")}
    assert main([*command, f"--workdir={run}", wrong]) == 2
    assert "holds a run with another configuration" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in run.glob("*.json")} == before


@pytest.mark.slow
def test_a_teacher_is_an_argument_and_no_part_of_the_state(finished: Path, tmp_path: Path):
    config = tiny(
        compress__distillation__teacher=str(finished), model__width_multiplier=0.5,
        compress__distillation__transfer="attention", train__ema_decay=0.0,
        augment__mixup_alpha=0.0,
    )  # fmt: skip
    shared = build.Shared()
    parts = build.build(config, tmp_path / "taught", shared=shared)
    data = build.build_data(config, tmp_path / "taught", shared)
    taught = shared.teacher(config, data, 10)
    assert taught is not None
    ignorant = dataclasses.replace(
        taught, variables=jax.tree.map(jax.numpy.zeros_like, taught.variables)
    )
    other, _ = build.build_steps(config, data, 10, shared, ignorant)
    assert shared.steps.cache_info().misses == 1  # one program for both

    def losses(step: Any, **changes: float) -> list[float]:
        state, found = steps.place(parts.init()), []
        batches = parts.train_batches(0, 2)
        for at, batch in enumerate(batches):
            hyper = {**parts.hyper(at), **{k: np.float32(v) for k, v in changes.items()}}
            state, values = step(state, steps.shard(batch), hyper)
            found.append(float(values["loss"][0]))
        batches.close()
        assert jax.tree.structure(jax.device_get(state)) == jax.tree.structure(parts.structure())
        return found

    assert losses(parts.train_step) != losses(other)
    # Without a weight the loss is that of a run without a teacher.
    plain = build.build(
        tiny(model__width_multiplier=0.5, train__ema_decay=0.0, augment__mixup_alpha=0.0),
        tmp_path / "plain",
    )
    alone = losses(parts.train_step, soft_weight=0.0, transfer_weight=0.0)
    np.testing.assert_allclose(alone, losses(plain.train_step), rtol=1e-4)


@pytest.mark.slow
def test_a_distilled_run_trains_and_names_its_teacher(finished: Path, tmp_path: Path):
    found = train(tmp_path / "student", compress__distillation__teacher=str(finished))
    assert found["status"] == "done" and found["teacher"] == {"step": 64}
    assert set(items(tmp_path / "student")["params"]) == set(items(finished)["params"])


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        ("zero", {}, r"which has 10 classes \(zero, 1, 2, ...\) with 10 outputs, but the"),
        ("", {"data__image_size": 16}, "trained on images of data.image_size=8, but .* uses 16"),
        (
            "", {"model__blocks": ((1, 8, 1, 2), (2, 8, 1, 2))},
            None,
        ),
        (
            "", {"model__blocks": ((1, 8, 1, 2), (2, 8, 1, 2)), "model__stem_strides": 2,
                 "compress__distillation__transfer": "attention"},
            "no stages of the student and the teacher have maps of the same resolution",
        ),
        (
            "", {"model__width_multiplier": 2.0, "compress__distillation__transfer": "features"},
            "of the same resolution with the same channels; set it to none",
        ),
    ],
)  # fmt: skip
def test_teachers_that_do_not_fit_are_refused_before_compiling(
    change: str, overrides: dict[str, Any], message: str | None, finished: Path, tmp_path: Path
):
    teacher = finished
    if change:
        teacher = tmp_path / "teacher"
        shutil.copytree(finished, teacher)
        text = (teacher / "data.json").read_text()
        (teacher / "data.json").write_text(text.replace('"0"', f'"{change}"'))
    config = tiny(compress__distillation__teacher=str(teacher), **overrides)
    if message is None:  # another network with the same classes and pictures is a teacher
        build.build(config, tmp_path)
        return
    with pytest.raises(ConfigError, match=message):
        build.build(config, tmp_path)


def test_a_teacher_that_is_no_run_is_refused(tmp_path: Path):
    config = tiny(compress__distillation__teacher=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="which is not a complete run; give the directory"):
        build.build(config, tmp_path)
