"""`mobilenet quantize`: a float run in, a quantised one out, what its layers lose, their bits."""

import ast
import csv
import shlex
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from support import Command, summary

from mobilenet import architecture, build, inference, quantization, rundir
from mobilenet.cli.main import main
from mobilenet.quantize.rules import ACTIVATIONS


@pytest.fixture(autouse=True)
def embedded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="module")
def quantised(mobilenet: Command, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "w8a8"
    done = mobilenet("quantize", f"--workdir={finished}", f"--to={workdir}")
    assert "at 8 bits per weight" in done.stdout and f"run directory: {workdir}" in done.stdout
    return workdir


def test_a_run_is_quantised_by_one_command(finished: Path, quantised: Path):
    config = rundir.read_config(quantised)
    assert config.pretrained == str(finished)
    assert config.quantize.weights.bits == config.quantize.activations.bits == 8
    before, after = summary(finished), summary(quantised)
    assert after["status"] == "done" and after["step"] == 0
    assert abs(after["test"]["top1"] - before["test"]["top1"]) <= 0.03
    facts = rundir.read_json(quantised / "quantization.json")
    assert facts["float_bytes"] == 4 * facts["weight_bytes"]


def test_a_folder_of_images_calibrates_a_run_whose_data_is_gone(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "photos" / "day").mkdir(parents=True)
    for index in range(5):
        pixels = np.full((8, 8), 40 * index, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / "day" / f"{index}.png")
    (tmp_path / "gone").write_text("")  # so that digits cannot be prepared there
    target = tmp_path / "quantised"
    command = ["quantize", f"--workdir={finished}", f"--to={target}"]
    command += [f"--config.data.data_dir={tmp_path / 'gone'}"]
    assert main(command) == 2  # without the folder, the run's own images are needed
    command += [f"--config.quantize.calibration_dir={tmp_path / 'photos'}"]
    assert main(command) == 0
    assert "Nothing is evaluated without it." in caplog.text
    after = summary(target)
    assert after["status"] == "done" and "test" not in after
    kept = rundir.read_json(finished / "data.json")
    del kept["examples"]  # it has seen none of them
    assert rundir.read_json(target / "data.json") == kept


def test_layers_lose_what_rounding_them_alone_loses(finished: Path, quantised: Path):
    config = rundir.read_config(quantised)
    restored = inference.read_checkpoint(quantised, "newest")
    data = build.build_data(config, quantised, match_classes=True)
    found = quantization.sensitivity(
        config, data, restored.eval_variables, bits=(2, 8), examples=40
    )
    order = [loss.site for loss in found[::2]]
    assert order[0] == "stem/conv/weights" and order[-1] == "classifier/weights"
    assert order.index("blocks_0_0/depthwise/conv/weights") < order.index("head/conv/weights")
    assert len(order) == len(set(order)) == 8  # stem, 2 + 3 of the bottlenecks, head, classifier
    assert {loss.bits for loss in found} == {2, 8}
    by_site = {site: {b.bits: b for b in found if b.site == site} for site in order}
    assert all(pair[8].divergence < 0.05 for pair in by_site.values())
    assert sum(pair[2].divergence > pair[8].divergence for pair in by_site.values()) >= 7

    # The classifier again, by hand: the float run's, with two bits (codes -1, 0, 1) a channel.
    float_config = rundir.read_config(finished)
    variables: Any = inference.read_checkpoint(finished, "newest").eval_variables
    model = architecture.build_model(float_config, 10)
    forward = build.build_forward(model, data.mean, data.std)
    batches = [batch["image"][batch["mask"] > 0] for batch in data.eval_batches("validation")]
    images = jnp.asarray(np.concatenate(batches)[:40])
    wanted = np.asarray(jax.nn.log_softmax(forward(variables, images)), np.float64)
    kernel = variables["params"]["classifier"]["kernel"]
    step = jnp.abs(kernel).max(0)
    rounded = jnp.round(kernel / step) * step
    params = {**variables["params"], "classifier": {**variables["params"]["classifier"]}}
    params["classifier"]["kernel"] = rounded
    given = forward({**variables, "params": params}, images)
    given = np.asarray(jax.nn.log_softmax(given), np.float64)
    loss = by_site["classifier/weights"][2]
    divergence = (np.exp(wanted) * (wanted - given)).sum(-1).mean()
    assert loss.divergence == pytest.approx(divergence, rel=1e-3) and divergence > 1e-5
    assert loss.agreement == np.mean(wanted.argmax(-1) == given.argmax(-1))
    assert loss.numbers == kernel.size


def test_looking_changes_nothing(quantised: Path, tmp_path: Path):
    config = rundir.read_config(quantised)
    restored = inference.read_checkpoint(quantised, "newest")
    before = jax.tree.map(np.array, dict(restored.eval_variables))
    data = build.build_data(config, quantised, match_classes=True)
    found = quantization.sensitivity(
        config, data, restored.eval_variables, bits=(4,), which=ACTIVATIONS, examples=16
    )
    assert {loss.site for loss in found} >= {"input", "stem/output", "pooled", "logits"}
    assert all(loss.numbers == 0 for loss in found)
    jax.tree.map(np.testing.assert_array_equal, before, dict(restored.eval_variables))


@pytest.mark.slow
def test_a_budget_becomes_rules_of_the_next_run(
    finished: Path, quantised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["--sensitivity=2,4,8", "--examples=40"]
    assert main(["quantize", f"--workdir={quantised}", *flags, "--budget=6,4.5"]) == 0
    out = capsys.readouterr().out
    with (quantised / "sensitivity_weights.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 8 * 3 and (quantised / "sensitivity_weights.png").stat().st_size > 10_000
    # The table and its figure can be committed.
    root = tmp_path / "checkout"
    (root / "experiments/results").mkdir(parents=True)
    report = ["report", f"--root={root}", "--row=digits", "quantization"]
    assert main([*report, str(quantised)]) == main([*report, str(quantised)]) == 0
    kept = root / "experiments/results/logs/sensitivity/digits/sensitivity_weights.csv"
    assert kept.read_bytes() == (quantised / "sensitivity_weights.csv").read_bytes()
    assert (root / "experiments/results/figures/sensitivity_weights_digits.svg").exists()
    assert main([*report, str(finished)]) == 2
    assert "--config is missing" in capsys.readouterr().err
    assert "within 6 bits per weight" in out
    joined = out.replace(" \\\n", " ")
    line = [line for line in joined.splitlines() if "quantize.rules=" in line][-1]
    overrides = [word for word in shlex.split(line) if word.startswith("--config.")]
    rules = ast.literal_eval(overrides[2].partition("=")[2])
    target = tmp_path / "mixed"
    assert main(["quantize", f"--workdir={finished}", f"--to={target}", *overrides]) == 0
    facts = rundir.read_json(target / "quantization.json")
    assert facts["mean_bits"] <= 4.5 and len(rules) >= 1
    sizes = {row["site"]: int(row["numbers"]) for row in table}
    quant = inference.read_checkpoint(target, "newest").items["quant"]
    found = {s: int(at(quant, s)["bits"]) for s in sizes}
    assert facts["mean_bits"] == pytest.approx(
        sum(sizes[s] * found[s] for s in sizes) / sum(sizes.values())
    )
    activations = [int(at(quant, site)["bits"]) for site in ("input", "pooled", "logits")]
    assert activations == [8, 8, 8]


def at(tree: Any, site: str) -> Any:
    for name in site.split("/"):
        tree = tree[name]
    return tree


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Give either --to=RUN, to quantise a run, or --sensitivity"),
        (["--to=a", "--sensitivity=2"], "Give either"),
        (["--to=a", "--budget=4"], "--budget goes with --sensitivity"),
        (["--sensitivity=2.5"], "it must be a whole number"),
        (["--sensitivity=1,9"], "The bits to try are 1, 9; they must be in 2..8"),
        (["--sensitivity=4", "--of=activations", "--budget=4"], "is one of weights"),
        (["--sensitivity=4", "--budget=3"], "with 4 as the fewest bits tried"),
        (["--sensitivity=4", "--budget=4,few"], "it must be a number"),
        (["--sensitivity=4", "--config.seed=1"], "seed would change what the run computes"),
        (["--sensitivity=4", "--examples=0"], "--examples is 0"),
        (["--to=a", "--config.quantize.weights.bits=1"], "bits is 1; it must be in 2..8"),
    ],
)
def test_what_does_not_fit_is_refused(
    quantised: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], flags: list[str], message: str,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    run = finished if any("--to" in flag for flag in flags) else quantised
    assert main(["quantize", f"--workdir={run}", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a" / "checkpoints").exists()


def test_a_float_run_has_no_layers_to_look_at_and_a_quantised_one_no_other_bits(
    finished: Path, quantised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["quantize", f"--workdir={finished}", "--sensitivity=4"]) == 2
    assert "make one with mobilenet quantize --to=RUN" in capsys.readouterr().err
    assert main(["quantize", f"--workdir={quantised}", f"--to={tmp_path / 'a'}"]) == 2
    assert "is quantised already; give the float run" in capsys.readouterr().err
