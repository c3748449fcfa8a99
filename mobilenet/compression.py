"""Smaller networks from runs: `shrink_run` cuts channels, `describe_run` counts what remains.

A shrunk run is an ordinary run directory with its own configuration. It can be trained further
(`pretrained`), evaluated, quantised and exported, and no other module needs to know that it was
cut. Iterative pruning cuts and trains alternately, to the budgets of `rounds_to`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mobilenet import architecture, build, conversion, inference, rundir
from mobilenet import config as config_lib
from mobilenet.compress import pruning, shrink, size
from mobilenet.config import Config, ConfigError
from mobilenet.models import cost
from mobilenet.models.mobilenet_v2 import Plan
from mobilenet.models.pretrained.weights import PretrainedError
from mobilenet.train import losses
from mobilenet.train.checkpoints import Restored
from mobilenet.trees import flatten

BUDGETS = {"macs": "MACs", "params": "parameters"}


@dataclasses.dataclass(frozen=True)
class Shrunk:
    """The result of `shrink_run`: costs before and after, (old, new) width of each cut block."""

    before: cost.Totals
    after: cost.Totals
    widths: dict[str, tuple[int, int]]


def shrink_run(
    workdir: Path,
    target: Path,
    *,
    budget: str,
    amount: float,
    score: str = "l1",
    divisor: int = 8,
    examples: int = 512,
    which: str = "result",
    config: Config = None,
) -> Shrunk:
    """Makes a run directory of a smaller network from a run's weights.

    Args:
      workdir: of the run.
      target: a new directory.
      budget: "macs" or "params".
      amount: of the budget: a fraction of the run's, in (0, 1), or a number above 1.
      score: one of `shrink.SCORES`.
      divisor: widths that are cut are multiples of it.
      examples: number of training images for "taylor".
      which: checkpoint, as in `inference.read_checkpoint`.
      config: of the run, with other config.RUNTIME_KEYS; None uses the stored one.

    Raises:
      ConfigError: a network, score or budget is not possible; the message says what is.
      CheckpointError, RunDirectoryError: a file cannot be read or written.
    """
    if score not in shrink.SCORES:
        raise ConfigError(f"The score is {score!r}; allowed are {', '.join(shrink.SCORES)}.")
    rundir.require_new(target)
    config, totals = _costs(workdir, config)
    limits = _limits(config, totals, budget, amount, divisor)
    weights = conversion.read_run(workdir, which)
    plan, classes = architecture.plan(config.model), weights.settings["model.num_classes"]
    before = totals(plan)
    try:
        names = shrink.widths(plan)
        if score == "taylor":
            ranks = _taylor(config, workdir, weights, list(names), classes, examples)
        else:
            rank = shrink.score_l1 if score == "l1" else shrink.score_bn_scale
            ranks = {name: rank(weights.params, name) for name in names}
        chosen = shrink.cut(plan, ranks, **limits)
    except shrink.ShrinkError as error:
        raise ConfigError(str(error)) from error
    keep = {name: shrink.kept_channels(ranks[name], width) for name, width in chosen.items()}
    params, batch_stats = shrink.slice_network(weights.params, weights.batch_stats, keep)
    smaller = shrink.resize(plan, chosen)
    after = totals(smaller)
    left = {name: f"{100 * getattr(after, name) / getattr(before, name):.1f} %" for name in BUDGETS}
    new = dataclasses.replace(
        weights,
        params=params,
        batch_stats=batch_stats,
        settings={
            **weights.settings,
            "model.expanded_features": tuple(block.expanded_features for block in smaller.blocks),
        },
        source=f"{weights.source}, shrunk by {score} to {left['macs']} of its MACs and "
        f"{left['params']} of its parameters",
    )
    # The location of the data too: the new run is evaluated on it, on this machine.
    places = {k: v for k, v in config_lib.flatten(config) if k.startswith("data.")}
    places["data.normalization"] = _normalization(config)
    try:
        conversion.write_run(new, target, overrides=places)
    except PretrainedError as error:
        raise ConfigError(str(error)) from error
    return Shrunk(before, after, {name: (names[name], chosen[name]) for name in names})


def rounds_to(
    workdir: Path, *, budget: str, amount: float, rounds: int, divisor: int = 8
) -> list[int]:
    """Budgets of iterative pruning: every round keeps the same fraction of the previous network.

    Args:
      workdir: of the run that the first round cuts.
      budget, amount, divisor: as in `shrink_run`, after the last round.
      rounds: number of rounds, at least 1.

    Returns:
      MACs or parameters, one value per round.

    Raises:
      ConfigError: the budget cannot be reached; the message says what can.
    """
    config, totals = _costs(workdir)
    limits, plan = _limits(config, totals, budget, amount, divisor), architecture.plan(config.model)
    whole, last = limits["measure"](plan), limits["budget"]
    return [round(whole * (last / whole) ** (k / rounds)) for k in range(1, rounds)] + [last]


def _costs(workdir: Path, config: Config = None) -> tuple[Config, Callable[[Plan], cost.Totals]]:
    """Configuration of a run, and a function: plan -> costs for the run's images and classes."""
    config = rundir.read_config(workdir) if config is None else config
    if config_lib.is_quantized(config):
        raise ConfigError(f"{workdir} is quantised; shrink the float run and quantise the result.")
    shape = architecture.image_shape(config)
    classes = build.resolve_classes(config, len(build.require_stored(workdir)["class_names"]))

    def totals(plan: Plan) -> cost.Totals:
        return cost.totals(cost.layer_costs(plan, shape, classes, config.model.kernel_size))

    return config, totals


def _limits(
    config: Config,
    totals: Callable[[Plan], cost.Totals],
    budget: str,
    amount: float,
    divisor: int,
) -> dict[str, Any]:
    """Arguments of `shrink.cut` for a budget; ConfigError if it is invalid or cannot be met."""
    if budget not in BUDGETS:
        raise ConfigError(f"The budget is {budget!r}; allowed are {', '.join(BUDGETS)}.")
    if not amount > 0:
        raise ConfigError(f"--{budget} is {amount}; it must be a fraction or a number above 0.")
    if divisor < 1:
        raise ConfigError(f"The divisor is {divisor}; it must be 1 or more.")
    plan = architecture.plan(config.model)

    def measure(plan: Plan) -> int:
        return getattr(totals(plan), budget)

    whole = measure(plan)
    allowed = min(whole, int(amount * whole) if amount < 1 else int(amount))
    found = {"measure": measure, "budget": allowed, "what": BUDGETS[budget], "divisor": divisor}
    try:
        shrink.check_budget(plan, **found)
    except shrink.ShrinkError as error:
        raise ConfigError(str(error)) from error
    return found


def _normalization(config: Config) -> str:
    """The origin of the statistics in a run's data.json, through the runs it started from."""
    while config.data.normalization == "pretrained":
        source = Path(config.pretrained)
        if not (source / "config.json").is_file():
            return "dataset"  # only a name: the numbers are in data.json
        config = rundir.read_config(source)
    return config.data.normalization


def _taylor(
    config: Config,
    workdir: Path,
    weights: Any,
    names: list[str],
    classes: int,
    examples: int,
) -> dict[str, np.ndarray]:
    """The mean over batches of `shrink.score_taylor`, on training images without augmentation."""
    if examples < 1:
        raise ConfigError(f"--examples is {examples}; it must be 1 or more.")
    data = build.build_data(config, workdir)
    model = architecture.build_model(config, classes)
    prepare = build.preprocess(data.mean, data.std)

    @jax.jit
    def gradients(params: Any, images: Any, labels: Any) -> Any:
        def loss(params: Any) -> Any:
            variables = {"params": params, "batch_stats": weights.batch_stats}
            logits: Any = model.apply(variables, prepare(images), False)
            return losses.cross_entropy(logits, jax.nn.one_hot(labels, classes)).mean()

        return jax.grad(loss)(params)

    def batches() -> Iterator[dict[str, np.ndarray]]:
        count = max(1, round(examples / config.train.global_batch_size))
        found = data.train_batches(0, count)
        try:
            yield from found
        finally:
            found.close()

    total: dict[str, Any] = {name: 0.0 for name in names}
    for batch in batches():
        found = jax.device_get(gradients(weights.params, batch["image"], batch["label"]))
        for name in names:
            total[name] = total[name] + shrink.score_taylor(weights.params, found, name)
    return {name: np.asarray(value) for name, value in total.items()}


def describe_run(workdir: Path, which: str = "result") -> dict[str, Any]:
    """Counts the zeros, parameters, MACs and bytes of a run's network.

    Args:
      workdir: the run directory.
      which: checkpoint, as in `inference.read_checkpoint`.

    Returns:
      `step`; `sparsity` of the kernels that the run's pruning rules select (the default rules if it
      was not pruned): `tensors`, `prunable`, `model`; `params` and `macs` of the dense network;
      `nonzero_params` and `nonzero_macs`, whose weight is not 0 (dense kernels do not skip any);
      `bytes` of parameters and statistics (`mobilenet.compress.size.sizes`).
    """
    config = rundir.read_config(workdir)
    stored = build.require_stored(workdir)
    restored: Restored = inference.read_checkpoint(workdir, which)
    variables = restored.eval_variables
    params = variables["params"]
    rules, pattern = config_lib.pruning_selection(config)
    layers = architecture.layer_costs(
        config, build.resolve_classes(config, len(stored["class_names"]))
    )
    kernels = {
        "/".join(name for name in path[:-1] if name != "conv"): leaf
        for path, leaf in flatten(params).items()
        if path[-1] == "kernel"
    }

    def density(layer: str) -> float:
        """Density of a layer's kernels; a squeeze-and-excitation has two."""
        own = [leaf for name, leaf in kernels.items() if f"{name}/".startswith(f"{layer}/")]
        return sum(map(np.count_nonzero, own)) / sum(map(np.size, own))

    macs = sum(layer.macs * density(layer.name) for layer in layers)
    total = cost.totals(layers)
    sparsity = pruning.report(params, pruning.Selection(rules, pattern))
    return {
        "step": restored.step,
        "sparsity": {name: sparsity[name] for name in ("tensors", "prunable", "model")},
        "params": total.params,
        "macs": total.macs,
        "nonzero_params": int(sum(np.count_nonzero(leaf) for leaf in jax.tree.leaves(params))),
        "nonzero_macs": round(macs),
        "bytes": size.sizes({"params": params, "batch_stats": variables["batch_stats"]}),
    }
