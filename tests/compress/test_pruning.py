"""The wrapper: masked after every update, whatever the optimiser does, in lanes and in the loop."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mobilenet import architecture
from mobilenet import config as config_lib
from mobilenet.compress import masks as masking
from mobilenet.compress import pruning, rules
from mobilenet.train import optim
from mobilenet.trees import flatten

PARAMS = {
    "stem": {"conv": {"kernel": jnp.arange(1.0, 9.0).reshape(2, 2, 1, 2)}},
    "blocks_0_0": {
        "expand": {
            "conv": {"kernel": jnp.array([[1.0, -2.0, 3.0, -4.0], [5.0, -6.0, 7.0, -8.0]])},
            "bn": {"scale": jnp.ones(4), "bias": jnp.zeros(4)},
        }
    },
    "classifier": {"kernel": jnp.array([[0.5, -0.1], [0.2, 0.4]]), "bias": jnp.zeros(2)},
}
EXPAND, CLASSIFIER = ("blocks_0_0", "expand", "conv", "kernel"), ("classifier", "kernel")
SELECTION = pruning.Selection(rules.Rules(), rules.Pattern())
NUMBERS = {"learning_rate": 0.1, "weight_decay": 0.01, "seed": np.uint32(3)}


def gradient(params: Any, step: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.sin(5 * leaf + step) + 0.5, params)


def run(
    schedule: rules.Schedule,
    updates: int,
    *,
    method: str = "magnitude",
    distribution: str = "uniform",
    optimizer: str = "sgd",
    **settings: Any,
) -> list[tuple[Any, pruning.PruneState]]:
    """Parameters and state after each update; the first entry is the start."""
    inner = optim.make_optimizer(optimizer, momentum=0.9)
    together = distribution == "global"
    wrapped = pruning.prune(inner, SELECTION, method=method, together=together, **settings)
    tensors = SELECTION(PARAMS)
    numbers = pruning.Numbers(
        tensors, schedule, distribution, rules.Pattern(), active=method != "zeros"
    )
    update = jax.jit(wrapped.update)
    params: Any = PARAMS
    state: Any = wrapped.init(PARAMS)
    seen = [(params, state)]
    for step in range(updates):
        delta, state = update(gradient(params, step), state, params, **NUMBERS, **numbers(step))
        params = optax.apply_updates(params, delta)
        seen.append((params, state))
    return seen


def zeros(params: Any, path: rules.Path) -> np.ndarray:
    return np.asarray(flatten(params)[path]) == 0


ONE_SHOT = functools.partial(rules.Schedule, "one_shot", end=0, every=1)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adamw"])
def test_removed_weights_are_zero_after_every_update(optimizer: str):
    seen = run(ONE_SHOT(start=2, final=0.5), 6, optimizer=optimizer)
    for params, _ in seen[:3]:  # two updates before
        assert not zeros(params, EXPAND).any()
    before = np.abs(np.asarray(seen[2][0]["blocks_0_0"]["expand"]["conv"]["kernel"]))
    smallest = before <= np.sort(before.ravel())[3]
    for params, state in seen[3:]:
        np.testing.assert_array_equal(zeros(params, EXPAND), smallest)
        assert zeros(params, CLASSIFIER).sum() == 2
        assert not zeros(params, ("stem", "conv", "kernel")).any()
        assert float(state.sparsity) == 0.5 and int(state.changes) == 1
    # The rest goes on learning, biases too.
    assert not np.array_equal(seen[3][0]["classifier"]["bias"], seen[6][0]["classifier"]["bias"])


def test_gradual_sparsity_is_exact_at_every_change():
    schedule = rules.Schedule("cubic", start=0, end=6, every=2, final=0.75, initial=0.0)
    for step, (params, state) in enumerate(run(schedule, 9, distribution="global")):
        target = schedule.sparsity(2 * ((step - 1) // 2)) if step else 0.0
        removed = zeros(params, EXPAND).sum() + zeros(params, CLASSIFIER).sum()
        assert removed == int(12 * min(target, 0.75) + 0.5)
        assert float(state.sparsity) == pytest.approx(removed / 12)


def test_saliency_is_weight_times_gradient():
    params, _ = run(ONE_SHOT(start=0, final=0.5), 1, method="saliency")[1]
    kernel = np.asarray(PARAMS["blocks_0_0"]["expand"]["conv"]["kernel"])
    score = np.abs(
        kernel * np.asarray(gradient(PARAMS, 0)["blocks_0_0"]["expand"]["conv"]["kernel"])
    )
    np.testing.assert_array_equal(zeros(params, EXPAND), score < np.sort(score.ravel())[4])


def test_random_masks_follow_the_seed_and_are_nested():
    schedule = rules.Schedule("cubic", start=0, end=4, every=2, final=0.75)
    seen = run(schedule, 5, method="random")
    once = run(ONE_SHOT(start=0, final=0.75), 1, method="random")[-1]
    np.testing.assert_array_equal(zeros(seen[-1][0], EXPAND), zeros(once[0], EXPAND))
    assert (zeros(seen[3][0], EXPAND) <= zeros(seen[5][0], EXPAND)).all()


def test_what_is_gone_stays_gone_when_a_weight_has_no_score():
    # A live weight without a gradient has the saliency 0 of those that are gone.
    wrapped = pruning.prune(optim.make_optimizer("sgd"), SELECTION, method="saliency")
    numbers = pruning.Numbers(SELECTION(PARAMS), ONE_SHOT(start=0, final=0.5), "uniform",
                              rules.Pattern())  # fmt: skip
    state = wrapped.init(PARAMS)
    delta, state = wrapped.update(gradient(PARAMS, 0), state, PARAMS, **NUMBERS, **numbers(0))
    params = optax.apply_updates(PARAMS, delta)
    gone = zeros(params, EXPAND)
    still = jax.tree.map(jnp.zeros_like, PARAMS)
    delta, state = wrapped.update(still, state, params, **NUMBERS, **numbers(0))
    np.testing.assert_array_equal(zeros(optax.apply_updates(params, delta), EXPAND), gone)


@pytest.mark.parametrize("method", ["rigl", "set"])
def test_regrowing_keeps_the_count_and_starts_weights_at_zero(method: str):
    schedule = rules.Schedule("one_shot", 0, 9, 3, 0.5, regrows=True, drop=0.5)
    seen = run(schedule, 8, method=method)
    assert int(seen[-1][1].changes) == 3
    for params, state in seen[1:]:
        mask = np.asarray(flatten(state.masks)[EXPAND])
        assert mask.sum() == 4 and zeros(params, CLASSIFIER).sum() == 2
        assert (zeros(params, EXPAND) >= ~mask).all()
    (before, old), (after, new) = seen[3], seen[4]  # the second change
    masks = [np.asarray(flatten(s.masks)[EXPAND]) for s in (old, new)]
    grown = masks[1] & ~masks[0]
    kernels = [np.abs(np.asarray(flatten(p)[EXPAND])) for p in (before, after)]
    assert (kernels[0][grown] == 0).all()
    if method == "rigl" and grown.any():
        growth = np.abs(flatten(gradient(before, 3))[EXPAND])
        assert growth[grown].min() >= growth[~masks[1]].max()


def test_zeros_at_the_start_stay():
    kernel = PARAMS["classifier"]["kernel"].at[0, 1].set(0.0)
    params = {**PARAMS, "classifier": {**PARAMS["classifier"], "kernel": kernel}}
    wrapped = pruning.prune(optim.make_optimizer("sgd"), SELECTION, method="zeros")
    state: Any = wrapped.init(params)
    for step in range(3):
        delta, state = wrapped.update(gradient(params, step), state, params, **NUMBERS)
        params = optax.apply_updates(params, delta)
    np.testing.assert_array_equal(zeros(params, CLASSIFIER), [[False, True], [False, False]])
    assert float(state.sparsity) == pytest.approx(1 / 12)


def test_rewinding_puts_weights_back_and_starts_the_optimiser_again():
    seen = run(ONE_SHOT(start=4, final=0.5, rewind=1), 6, rewinds=True)
    early, late = seen[1][0], seen[5]
    expected = pruning.apply_masks(late[1].masks, early)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), late[0], expected
    )
    trace = jax.tree.leaves(late[1].inner)
    assert all((np.asarray(leaf) == 0).all() for leaf in trace)
    before = np.abs(np.asarray(flatten(seen[4][0])[EXPAND]))  # ranked by trained weights
    np.testing.assert_array_equal(zeros(late[0], EXPAND), before <= np.sort(before.ravel())[3])


def test_averages_lose_a_weight_when_it_goes():
    _, state = run(ONE_SHOT(start=0, final=0.5), 1)[-1]
    average = pruning.settle(state, PARAMS)
    np.testing.assert_array_equal(zeros(average, EXPAND), ~np.asarray(flatten(state.masks)[EXPAND]))
    np.testing.assert_array_equal(
        average["stem"]["conv"]["kernel"], PARAMS["stem"]["conv"]["kernel"]
    )


def test_lanes_change_masks_at_steps_of_their_own():
    schedules = [ONE_SHOT(start=1, final=0.5), ONE_SHOT(start=2, final=0.75)]
    tensors = SELECTION(PARAMS)
    numbers = [pruning.Numbers(tensors, s, "uniform", rules.Pattern()) for s in schedules]
    wrapped = pruning.prune(optim.make_optimizer("sgd"), SELECTION, method="magnitude")

    def both(*trees: Any) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *trees)

    update = jax.jit(jax.vmap(lambda g, s, p, n: wrapped.update(g, s, p, **n)))
    params, state = both(PARAMS, PARAMS), both(*[wrapped.init(PARAMS)] * 2)
    for step in range(4):
        told = both(*({**NUMBERS, **own(step)} for own in numbers))
        delta, state = update(gradient(params, step), state, params, told)
        params = optax.apply_updates(params, delta)
    for lane, schedule in enumerate(schedules):
        alone, _ = run(schedule, 4)[-1]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[lane], b, rtol=1e-6, atol=1e-7),  # noqa: B023
            params,
            alone,
        )


def test_the_conditional_survives_lanes():
    # A selection in its place would rank all weights at every step of every lane.
    wrapped = pruning.prune(optim.make_optimizer("sgd"), SELECTION, method="magnitude")
    numbers = pruning.Numbers(
        SELECTION(PARAMS), ONE_SHOT(start=1, final=0.5), "uniform", rules.Pattern()
    )
    told = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), {**NUMBERS, **numbers(0)})
    params = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), PARAMS)
    state = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), wrapped.init(PARAMS))
    program = jax.make_jaxpr(jax.vmap(lambda g, s, p, n: wrapped.update(g, s, p, **n)))(
        params, state, params, told
    )
    assert "sort" not in {str(equation.primitive) for equation in program.eqns}
    assert "cond" in str(program)


@pytest.mark.parametrize(
    ("pattern", "distribution", "sparsity"),
    [
        pytest.param("2:4", "uniform", 0.5, marks=pytest.mark.slow),
        ("weights", "global", 0.9),
    ],
)
def test_masks_of_the_real_network_are_exact(pattern: str, distribution: str, sparsity: float):
    config = config_lib.get_config()
    model = architecture.build_model(config, 1000)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    tensors = rules.choose(
        {path: leaf.shape for path, leaf in flatten(shapes).items()},
        rules.Rules(),
        rules.parse_pattern(pattern),
    )
    rng = np.random.default_rng(0)
    # Few values, so that there are many ties.
    scores = {t.name: rng.integers(0, 50, t.shape).astype(np.float32) for t in tensors}
    counts = rules.keep_counts(tensors, sparsity, distribution, rules.parse_pattern(pattern))
    made = masking.make_masks(
        {name: jnp.asarray(score) for name, score in scores.items()},
        jnp.asarray(counts),
        rules.parse_pattern(pattern),
        together=distribution == "global",
    )
    total = sum(tensor.size for tensor in tensors)
    assert total > 3_300_000  # of 3.5 million parameters
    kept = sum(int(mask.sum()) for mask in made.values())
    assert kept == total - int(sparsity * total + 0.5)
    if pattern == "2:4":
        for mask in made.values():
            groups = np.asarray(mask).reshape(-1, mask.shape[-2] // 4, 4, mask.shape[-1])
            assert (groups.sum(2) == 2).all()


def test_reports_count_real_zeros():
    params, _ = run(ONE_SHOT(start=0, final=0.5), 1)[-1]
    found = pruning.report(params, SELECTION)
    assert found["tensors"] == {"blocks_0_0/expand": 0.5, "classifier": 0.5}
    assert found["prunable"] == 0.5 and (found["zeros"], found["weights"]) == (6, 12)
    assert found["params"] == 8 + 8 + 8 + 4 + 2 and found["model"] >= 6 / 30
