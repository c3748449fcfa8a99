"""The ablations' scales: one base each, every variant can run, and variants are what they say."""

from pathlib import Path
from typing import Any

import pytest

from mobilenet import architecture, experiment
from mobilenet import config as config_lib
from mobilenet.config import ConfigError
from mobilenet.models import cost
from mobilenet.sweep import points, scales

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "experiments" / "ablations").glob("*.py"))


def variant(file: str, name: str, scale: str) -> Any:
    module = experiment.load_module(str(ROOT / "experiments" / "ablations" / f"{file}.py"))
    return points.make_point(module.get_config(scale), module.variants(scale)[name]).config


def totals(config: Any) -> cost.Totals:
    return cost.totals(architecture.layer_costs(config, 10))


def test_there_are_ablations():
    assert {path.stem for path in FILES} >= {
        "bottleneck", "shortcut", "expansion", "squeeze_excite", "head", "width_resolution",
    }  # fmt: skip


@pytest.mark.parametrize(("scale", "file"), [("full", "cifar10"), ("imagenet", "imagenet_cosine")])
def test_large_scales_are_the_baselines(scale: str, file: str):
    baseline = experiment.load_config(str(ROOT / f"experiments/baselines/{file}.py"), {})
    assert config_lib.to_json(scales.base(scale)) == config_lib.to_json(baseline)


@pytest.mark.parametrize("scale", scales.SCALES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_sweep_can_run(path: Path, scale: str):
    module = experiment.load_module(str(path))
    planned = points.points_of(module.get_config(scale), module.sweep(scale))
    variants = module.variants(scale)
    assert len(planned) == len(variants) * (2 if scale == "smoke" else 3)
    for first, second in module.comparisons(scale).values():
        assert first in variants and second in variants and first != second
    for point in planned:
        architecture.plan(point.config.model)
    assert config_lib.to_json(module.get_config(scale)) == config_lib.to_json(scales.base(scale))


@pytest.mark.parametrize("scale", scales.SCALES)
def test_experiments_share_the_baseline(scale: str):
    baseline = config_lib.fingerprint(scales.base(scale))
    for path in FILES:
        module = experiment.load_module(str(path))
        keys = {p.key for p in points.points_of(module.get_config(scale), module.sweep(scale))}
        # The last convolution's question is about narrow networks alone.
        assert (baseline in keys) or (path.stem == "head" and scale in ("full", "imagenet"))


@pytest.mark.parametrize("scale", scales.SCALES)
def test_expansion_ratios_are_compared_at_nearly_equal_macs(scale: str):
    wide, narrow = (totals(variant("expansion", n, scale)) for n in ("t = 6", "t = 10, narrower"))
    assert abs(narrow.macs / wide.macs - 1) < 0.1


def test_variants_change_what_they_say():
    base = variant("shortcut", "between bottlenecks", "cifar")
    kinds = {
        name: [block.shortcut for block in architecture.plan(config.model).blocks]
        for name, config in {
            "bottleneck": base,
            "expansion": variant("shortcut", "between expansions", "cifar"),
            "none": variant("shortcut", "none", "cifar"),
        }.items()
    }
    # As many of one kind as of the other: their place is what is compared.
    assert kinds["bottleneck"].count("identity") == 5
    assert kinds["expansion"].count("expansion") == 5
    assert set(kinds["none"]) == {"none"}
    assert totals(variant("shortcut", "none", "cifar")) == totals(base)

    se = architecture.plan(variant("squeeze_excite", "SE", "cifar").model).blocks
    assert all(block.squeeze_features == max(1, block.in_features // 4) for block in se)
    heads = [
        architecture.plan(variant("head", f"width 0.35, head {word}", "full").model).head_features
        for word in ("kept", "thinned")
    ]
    assert heads == [1280, 448]


def test_other_arguments_are_refused():
    with pytest.raises(ConfigError, match="The scale 'large' is not one") as refused:
        scales.base("large")
    for name, meaning in scales.SCALES.items():
        assert f"\n  {name:<8}  {meaning}" in str(refused.value)
    with pytest.raises(ConfigError) as refused:
        scales.name_of("imagenet", ("full", "smoke"))
    assert "cifar" not in str(refused.value).replace("CIFAR", "")
