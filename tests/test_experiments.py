"""Every experiment file: it builds, it says what it is, and its smoke form really trains."""

import json
from pathlib import Path

import jax
import pytest

from mobilenet import build
from mobilenet import config as config_lib
from mobilenet.cli import common
from mobilenet.models.mobilenet_v2 import PAPER_BLOCKS
from mobilenet.train import loop

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for path in (ROOT / "experiments").glob("**/*.py") if path.name != "__init__.py"
)


def test_there_are_experiments_and_the_base_table_is_the_papers():
    assert len(FILES) >= 4
    assert tuple(PAPER_BLOCKS) == tuple(config_lib.get_config().model.blocks)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_experiments_are_valid_and_documented(path: Path):
    config = common.load_config(str(path), {})
    config_lib.validate(config)
    config_lib.validate(config, devices=2)
    assert config_lib.to_json(config_lib.from_json(config_lib.to_json(config))) == (
        config_lib.to_json(config)
    )
    text = path.read_text()
    assert "Run:" in text and f"--config={path.relative_to(ROOT)}" in text


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_smoke_forms_train(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = common.load_config(f"{path}:smoke", {})
    workdir = tmp_path / "run"
    workdir.mkdir()
    summary = loop.train(build.build(config, workdir), workdir)
    assert summary["status"] == "done" and summary["step"] == 2
    assert json.loads((workdir / "summary.json").read_text())["test"]["examples"] == 360
    jax.clear_caches()


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("imagenet_paper", 3_504_872, 300_774_272),
        ("imagenet_cosine", 3_504_872, 300_774_272),
    ],
)
def test_imagenet_baselines_are_the_papers_network(name: str, params: int, macs: int):
    config = common.load_config(str(ROOT / f"experiments/baselines/{name}.py"), {})
    totals = build.cost.totals(build.layer_costs(config, 1000))
    assert (totals.params, totals.macs) == (params, macs)


def test_cifar10_baseline_is_the_published_network():
    config = common.load_config(str(ROOT / "experiments/baselines/cifar10.py"), {})
    totals = build.cost.totals(build.layer_costs(config, 10))
    assert (totals.params, totals.macs) == (2_236_682, 87_976_448)
