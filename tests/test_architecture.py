"""From a configuration to any of the networks: what it reads, its costs, strides and training."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet import architecture, build, experiment
from mobilenet import config as config_lib
from mobilenet.cli.main import main
from mobilenet.config import ConfigError
from mobilenet.models import cost, mobilenet_v1, mobilenet_v3, resnet
from mobilenet.sweep import listing, points
from mobilenet.train import steps

NAMES = config_lib.CHOICES["model.name"]
OTHERS = NAMES[1:]
COMPARISON = Path(__file__).parents[1] / "experiments" / "comparison" / "architectures.py"


def config_of(name: str, **changes: Any) -> Any:
    config = config_lib.get_config()
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    config_lib.update(config, {"model.name": name, **overrides})
    config_lib.validate(config)
    return config


@functools.cache
def traced(model: Any, size: int) -> tuple[Any, Any]:
    """Variables and endpoints, as shapes."""
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    apply = functools.partial(model.apply, endpoints=True)
    return variables, jax.eval_shape(apply, variables, images)[1]


def test_strides_in_the_configuration_are_the_tables():
    tables = {
        "mobilenet_v1": mobilenet_v1.PAPER_BLOCKS,
        **{name: stages for name, (stages, _) in mobilenet_v3.TABLES.items()},
        **{name: stages for name, (stages, _) in resnet.TABLES.items()},
    }
    assert {name: tuple(s.strides for s in stages) for name, stages in tables.items()} == (
        config_lib.STAGE_STRIDES
    )
    assert set(OTHERS) == set(tables)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in NAMES),
        ("mobilenet_v1", {"model__stem_strides": 1, "model__stage_strides": (1, 1, 2, 2, 2)}),
        ("resnet18", {"model__stem_strides": 1}),
        ("mobilenet_v3_small", {"model__stage_strides": (1, 2, 2, 1, 1)}),
    ],
)
def test_total_stride_and_costs_are_the_networks(name: str, changes: dict[str, Any]):
    config = config_of(name, model__width_multiplier=0.5, data__image_size=64, **changes)
    model: Any = architecture.build_model(config, 7)
    variables, found = traced(model, 64)
    last = max(endpoint for endpoint in found if endpoint.startswith("stage_"))
    assert found[last].shape[1] == 64 // config_lib.total_stride(config.model)
    assert set(variables["params"]) == set(model.modules)
    layers = architecture.layer_costs(config, 7)
    totals = cost.totals(layers)
    assert totals.params == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert layers[-1].name == "classifier" and layers[-1].out_shape == (1, 1, 7)
    assert bool(architecture.peaks(config, 7)) == (name == "mobilenet_v2")


def test_the_configuration_reaches_the_network():
    config = config_of(
        "mobilenet_v1",
        model__activation="relu",
        model__padding="SYMMETRIC",
        model__dropout_rate=0.2,
        model__bn_momentum=0.9,
        model__dtype="bfloat16",
        model__divisor=1,
        model__width_multiplier=0.3,
        finetune__train_from="blocks_4",
    )
    model = architecture.build_model(config, 7, devices=2)
    assert (model.activation, model.padding, model.dropout_rate) == ("relu", "SYMMETRIC", 0.2)
    assert (model.bn_momentum, model.dtype, model.bn_axis_name) == (0.9, jnp.bfloat16, steps.AXIS)
    assert model.plan.blocks[0].features == 19
    assert model.frozen == tuple(name for name in model.modules if "_4_" not in name)[:-1]


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("resnet18", {"model.expansion_ratio": 6.0}, "model.expansion_ratio has no effect on resn"),
        (
            "resnet50",
            {"model.activation": "relu"},
            "model.activation has no effect on resnet50; le",
        ),
        ("mobilenet_v1", {"model.se_ratio": 0.25}, "model.se_ratio has no effect on mobilenet_v1;"),
        ("mobilenet_v3_small", {"model.head_features": 0}, "model.head_features has no effect on"),
        ("mobilenet_v3_large", {"model.blocks": ((6, 16, 1, 1),)}, "model.blocks has no effect on"),
        (
            "mobilenet_v1",
            {"model.stage_strides": (1, 2)},
            r"it must be \(\) or 5 strides of 1 or 2",
        ),
        ("resnet18", {"data.image_size": 31}, "the network's strides multiply to 32"),
        ("mobilenet_v4", {}, "allowed are mobilenet_v2, mobilenet_v1, mobilenet_v3_small"),
    ],
)
def test_what_a_network_cannot_use_is_refused(name: str, overrides: dict[str, Any], message: str):
    config = config_lib.get_config()
    config_lib.update(config, {"model.name": name, **overrides})
    with pytest.raises(ConfigError, match=message) as caught:
        config_lib.validate(config)
    assert "\n" not in str(caught.value)


def test_what_needs_mobilenet_v2s_plan_says_so():
    with pytest.raises(ConfigError, match="model.name is 'resnet18', .* plan of mobilenet_v2"):
        architecture.plan(config_of("resnet18").model)


@pytest.mark.parametrize("name", OTHERS)
def test_cost_prints_every_network(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "experiment.py"
    file.write_text(
        "from mobilenet import config as base\ndef get_config(arg=''):\n"
        f"    config = base.get_config(arg)\n    config.model.name = {name!r}\n"
        "    config.data.image_size = 224\n    return config\n"
    )
    assert main(["cost", f"--config={file}", "--config.model.num_classes=1000"]) == 0
    text = capsys.readouterr().out
    params = {
        "mobilenet_v1": "4,231,976",
        "mobilenet_v3_small": "2,542,856",
        "mobilenet_v3_large": "5,483,032",
        "resnet18": "11,689,512",
        "resnet50": "25,557,032",
    }[name]
    assert f"parameters: {params} trainable" in text
    assert "defined for MobileNetV2's blocks alone" in text
    table = text.partition("\n\n")[0].splitlines()
    assert len({len(line) for line in table[:-1]}) == 1  # columns are wide enough
    assert all(len(line) <= 88 for line in text.splitlines())


def test_the_comparison_is_at_nearly_equal_macs():
    module: Any = experiment.load_module(str(COMPARISON))
    variants = module.variants()
    for budget in ("28 M", "88 M"):
        macs = [
            cost.totals(architecture.layer_costs(point.config, 10)).macs
            for label, _, _ in module.BUDGETS[budget]
            for point in [points.make_point(module.get_config(), variants[label])]
        ]
        assert all(abs(m / macs[0] - 1) <= 0.1 for m in macs), macs
        assert round(macs[0] / 1e6) == int(budget.removesuffix(" M"))


@pytest.mark.parametrize("arg", ["", "cifar", "smoke"])
def test_every_point_of_the_comparison_can_run(arg: str):
    module: Any = experiment.load_module(str(COMPARISON))
    planned = points.points_of(module.get_config(arg), module.sweep(arg))
    assert len(planned) == len(module.variants(arg)) * (2 if arg == "smoke" else 3)
    for point in planned:
        config_lib.validate(point.config, devices=2)
        size = point.config.data.image_size
        assert config_lib.total_stride(point.config.model) == 8 and size % 8 == 0
    with pytest.raises(ConfigError, match="The scale 'cpu' is not one"):
        module.get_config("cpu")


def test_a_sweep_over_networks_is_listed_with_their_costs(tmp_path: Path):
    base = config_of("resnet18", model__stem_strides=1, model__width_multiplier=0.25)
    planned = points.points_of(base, [{}, {"model.name": "mobilenet_v1"}])
    text = listing.table(planned, tmp_path)
    for point in planned:
        totals = cost.totals(architecture.layer_costs(point.config, 10))
        assert f"{totals.params:,}" in text and f"{totals.macs / 1e6:,.1f}" in text
    assert "2 runs of 2 variants: 0 done" in text and "2 shapes to compile" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_a_step_trains_every_network(name: str):
    # Every parameter and statistic is finite after a step, and no longer what it was.
    config = config_of(
        name,
        model__width_multiplier=0.1,
        model__stem_strides=1,
        model__conv_form="grouped",
        data__image_size=32,
        train__global_batch_size=8,
    )
    mean, std = (0.5,) * 3, (0.25,) * 3
    model = architecture.build_model(config, 4, devices=jax.device_count())
    update = build.build_train_step(config, model, build.build_augment(config, mean, std))
    state: Any = steps.place(build.init_state(config, 4))
    before = jax.device_get((state.params, state.batch_stats))
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8),
        "label": np.arange(8, dtype=np.int32) % 4,
        "index": np.arange(8, dtype=np.int32),
        "epoch": np.zeros(8, np.int32),
    }
    state, metrics = update(state, steps.shard(batch), build.hyperparameters(config, 0.1))
    assert np.isfinite(metrics["loss"][0]) and float(metrics["accuracy"][1]) == 8
    after = jax.device_get((state.params, state.batch_stats))
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
    ):
        assert np.all(np.isfinite(new)) and not np.array_equal(old, new), path
    jax.clear_caches()
