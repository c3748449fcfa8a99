"""The steps: one device equals two, parts equal the whole, hyperparameters are arguments."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet.data import transforms
from mobilenet.models.mobilenet_v2 import BlockSpec, MobileNetV2, plan_blocks
from mobilenet.train import optim, state, steps

CLASSES = 4
# In memory of nothing but its size: a stem, two bottlenecks with a shortcut, a head.
PLAN = plan_blocks(
    blocks=(BlockSpec(1, 8, 1, 1), BlockSpec(2, 8, 1, 1)), stem_features=8, head_features=16
)
HYPER = {
    "seed": np.uint32(7),
    "learning_rate": np.float32(0.1),
    "weight_decay": np.float32(1e-3),
    "backbone_rate": np.float32(1.0),
    "step_rate": np.float32(1.0),
    "label_smoothing": np.float32(0.1),
    "ema_decay": np.float32(0.9),
}


def batch(size: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (size, 8, 8, 3), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, size).astype(np.int32),
        "index": np.arange(size, dtype=np.int32),
        "epoch": np.zeros(size, np.int32),
    }


def run(devices: int, **settings: Any) -> tuple[state.TrainState, list[Any]]:
    """The state after some updates, and their metrics; equal calls share one run."""
    return _cached_run(devices, json.dumps(settings, sort_keys=True))


@functools.cache
def _cached_run(devices: int, settings: str) -> tuple[state.TrainState, list[Any]]:
    return _run(devices, **json.loads(settings))


def _run(
    devices: int,
    *,
    updates: int = 2,
    statistics: str = "sync",
    augment: dict[str, Any] | None = None,
    optimizer: str = "sgd",
    accumulation_steps: int = 1,
    dropout_rate: float = 0.0,
    ema: bool = False,
) -> tuple[state.TrainState, list[Any]]:
    axis, groups = steps.bn_groups(devices, statistics, 1)
    model = MobileNetV2(
        PLAN, CLASSES, bn_axis_name=axis, bn_axis_index_groups=groups, dropout_rate=dropout_rate,
        bn_momentum=0.9,
    )  # fmt: skip
    local = model.clone(bn_axis_name=None, bn_axis_index_groups=None)
    variables = local.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    chosen = optim.make_optimizer(optimizer)
    step = steps.make_train_step(
        model.apply,
        chosen,
        transforms.make_augment(mean=(0.5,), std=(0.25,), **(augment or {})),
        transforms.example_keys,
        num_classes=CLASSES,
        accumulation_steps=accumulation_steps,
        average_batch_stats=statistics != "sync",
        ema=ema,
    )
    mapped = jax.pmap(
        step, steps.AXIS, in_axes=(None, 0, None), out_axes=(None, None), donate_argnums=(0,),
        devices=jax.devices()[:devices],
    )  # fmt: skip
    current = state.create(variables, chosen, ema=ema)
    seen = []
    for _ in range(updates):
        data = {k: v.reshape(devices, -1, *v.shape[1:]) for k, v in batch().items()}
        current, values = mapped(current, data, HYPER)
        seen.append(jax.device_get(values))
    return state.to_host(current), seen


def assert_close(a: Any, b: Any, tolerance: float = 2e-5) -> None:
    # Sums run in another order on two devices: float32 rounding, amplified by BN's division.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b
    )


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {
            "augment": {
                "random_crop_padding": 1, "horizontal_flip": True, "mixup_alpha": 0.2,
                "cutmix_alpha": 1.0, "random_erasing": 0.5,
            },
            "dropout_rate": 0.5, "ema": True, "optimizer": "rmsprop",
        },
    ],
    ids=["plain", "everything"],
)  # fmt: skip
def test_two_devices_equal_one(settings: dict[str, Any]):
    one, two = run(1, **settings), run(2, **settings)
    assert_close(one[0], two[0])
    assert_close(one[1], two[1], 1e-4)


@pytest.mark.slow
def test_local_statistics_differ_from_synchronised_ones():
    sync, local = run(2)[0], run(2, statistics="local")[0]
    leaves = zip(jax.tree.leaves(sync.params), jax.tree.leaves(local.params), strict=True)
    assert any(not np.allclose(a, b, atol=1e-4) for a, b in leaves)


def test_grouped_statistics_of_one_device_are_local_ones():
    assert_close(run(2, statistics="group")[0], run(2, statistics="local")[0], 1e-6)


def test_state_stays_unstacked():
    one, two = run(1)[0], run(2)[0]
    assert jax.tree.map(np.shape, one) == jax.tree.map(np.shape, two)
    assert two.step == 2


@pytest.mark.slow
def test_accumulation_equals_the_mean_over_parts():
    # BN normalises within a part, so the reference computes the parts itself.
    whole, seen = run(1, updates=1, accumulation_steps=2)
    model = MobileNetV2(PLAN, CLASSES, bn_momentum=0.9)
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    preprocess = transforms.make_preprocess((0.5,), (0.25,))

    def loss(params: Any, stats: Any, images: Any, labels: Any) -> Any:
        logits, updated = model.apply(
            {"params": params, "batch_stats": stats}, preprocess(images), True,
            mutable=["batch_stats"],
        )  # fmt: skip
        targets = jax.nn.one_hot(labels, CLASSES) * 0.9 + 0.1 / CLASSES
        return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), -1)), updated["batch_stats"]

    stats, grads = variables["batch_stats"], None
    data = batch()
    for part in (slice(0, 8), slice(8, 16)):
        new, stats = jax.grad(loss, has_aux=True)(
            variables["params"], stats, data["image"][part], data["label"][part]
        )
        grads = new if grads is None else jax.tree.map(jnp.add, grads, new)
    optimizer = optim.make_optimizer("sgd")
    updates, _ = optimizer.update(
        jax.tree.map(lambda g: g / 2, grads),
        optimizer.init(variables["params"]),
        variables["params"],
        learning_rate=HYPER["learning_rate"],
        weight_decay=HYPER["weight_decay"],
    )
    expected = jax.tree.map(jnp.add, variables["params"], updates)
    assert_close(whole.params, expected)
    assert_close(whole.batch_stats, stats)
    assert seen[0]["loss"][1] == 16


def test_ema_follows_its_rule():
    once = run(1, updates=1, ema=True)[0]
    twice = run(1, updates=2, ema=True)[0]
    start = run(1, updates=0, ema=True)[0]
    # decay = min(ema_decay, (1 + t) / (10 + t)): 0.1 at the first update, 2 / 11 at the second.
    for part in ("params", "batch_stats"):
        first = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, start.ema[part], getattr(once, part))
        assert_close(once.ema[part], first, 1e-6)
        second = jax.tree.map(
            lambda a, b: 2 / 11 * a + 9 / 11 * b, once.ema[part], getattr(twice, part)
        )
        assert_close(twice.ema[part], second, 1e-6)


def test_evaluation_returns_a_row_an_example_on_any_number_of_devices():
    model = MobileNetV2(PLAN, CLASSES)
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    prepare = transforms.make_preprocess((0.5,), (0.25,))
    step = steps.make_eval_step(
        lambda variables, images: model.apply(variables, prepare(images), False),  # pyright: ignore
        num_classes=CLASSES,
    )
    data = {**batch(), "mask": np.ones(16, np.float32)}
    rows = {}
    for devices in (1, 2):
        mapped = jax.pmap(
            step, steps.AXIS, in_axes=(None, 0), out_axes=None, devices=jax.devices()[:devices]
        )
        split = {k: v.reshape(devices, -1, *v.shape[1:]) for k, v in data.items()}
        rows[devices] = jax.device_get(mapped(variables, split))
    np.testing.assert_array_equal(rows[2]["index"], np.arange(16))
    np.testing.assert_array_equal(rows[1]["top"], rows[2]["top"])
    np.testing.assert_allclose(rows[1]["loss"], rows[2]["loss"], rtol=1e-5)
    assert rows[1]["top"].shape == (16, CLASSES)


def test_hyperparameters_share_one_compilation():
    model = MobileNetV2(PLAN, CLASSES)
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    optimizer = optim.make_optimizer("sgd")
    traces = 0

    def apply(*args: Any, **kwargs: Any) -> Any:
        nonlocal traces
        traces += 1
        return model.apply(*args, **kwargs)

    step = steps.map_train_step(
        steps.make_train_step(
            apply, optimizer, transforms.make_augment(mean=(0.5,), std=(0.25,)),
            transforms.example_keys, num_classes=CLASSES,
        )
    )  # fmt: skip
    current = steps.place(state.create(variables, optimizer, ema=False))
    results = []
    for seed, rate in ((1, 0.1), (2, 0.2), (3, 0.3)):
        hyper = {**HYPER, "seed": np.uint32(seed), "learning_rate": np.float32(rate)}
        current, values = step(current, steps.shard(batch()), hyper)
        results.append(float(values["loss"][0]))
    assert traces == 1
    assert len(set(results)) == 3
