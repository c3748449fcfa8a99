"""Unstructured pruning as a wrapper around an optimiser, whose state holds the masks.

After every update, params + updates is masked, so a removed weight is exactly 0 and stays 0 in
spite of weight decay and momentum. The numbers that a run chooses (how many weights are kept, when
masks change) are arguments of `update`. `Numbers` makes them on the host, so targets, schedules and
distributions share a compiled step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from mobilenet.compress import masks as masking
from mobilenet.compress.rules import (
    REGROWING,
    Pattern,
    Rules,
    Schedule,
    Tensor,
    choose,
    keep_counts,
)
from mobilenet.trees import flatten, nest

# What an update does in addition to updating.
NOTHING, CHANGE, REMEMBER = 0, 1, 2
# Streams of randomness folded into the run's seed, in addition to those of `mobilenet.train.steps`.
ORDER_STREAM, GROWTH_STREAM = 4, 5


class PruneState(NamedTuple):
    """State of a pruned optimiser.

    Attributes:
      masks: a bool array for every pruned kernel, nested like the parameters.
      changes: number of times that the masks were made, int32.
      sparsity: of the masks, over all weights that they cover, float32.
      remembered: the parameters to rewind to, or {}.
      inner: state of the optimiser.
    """

    masks: Any
    changes: jax.Array
    sparsity: jax.Array
    remembered: Any
    inner: Any


@dataclasses.dataclass(frozen=True)
class Selection:
    """Selects the kernels that are pruned, and the pattern of pruning."""

    rules: Rules
    pattern: Pattern

    def __call__(self, params: Any) -> tuple[Tensor, ...]:
        """The kernels, sorted by path; RuleError if the rules do not fit."""
        shapes = {path: np.shape(leaf) for path, leaf in flatten(params).items()}
        return choose(shapes, self.rules, self.pattern)


def _where_kept(masks: Any, tree: Any, other: Any) -> Any:
    """`tree`, with `other`'s numbers where a mask removes a weight."""
    found, others = flatten(masks), flatten(other)
    return nest(
        {
            path: jnp.where(found[path], leaf, others[path]) if path in found else leaf
            for path, leaf in flatten(tree).items()
        }
    )


def apply_masks(masks: Any, tree: Any) -> Any:
    """A tree of the parameters' structure with removed weights set to 0."""
    return _where_kept(masks, tree, jax.tree.map(jnp.zeros_like, tree))


def _zeros_in(masks: Any) -> jax.Array:
    """The fraction of removed weights among the weights that have masks."""
    leaves = jax.tree.leaves(masks)
    removed = sum((jnp.sum(~leaf, dtype=jnp.int32) for leaf in leaves), jnp.int32(0))
    return removed.astype(jnp.float32) / sum(leaf.size for leaf in leaves)


def _occasionally(change: Callable[..., Any]) -> Callable[..., Any]:
    """`change(action, state, *args)` as a function that costs nothing if there is no action.

    A conditional whose predicate has a lane axis becomes a selection that computes both sides at
    every step. Here all lanes share one conditional: if any lane has an action, all compute it.
    """

    @jax.custom_batching.custom_vmap
    def run(action: jax.Array, state: Any, *args: Any) -> Any:
        return lax.cond(action != NOTHING, lambda: change(action, state, *args), lambda: state)

    @run.def_vmap
    def _(size: int, batched: Any, action: jax.Array, state: Any, *args: Any) -> Any:
        axes = jax.tree.map(lambda has_axis: 0 if has_axis else None, batched)
        every_lane = jax.vmap(change, in_axes=tuple(axes))
        spread = jax.tree.map(
            lambda leaf, has_axis: (
                leaf if has_axis else jnp.broadcast_to(leaf, (size, *leaf.shape))
            ),
            state,
            batched[1],
        )
        new = lax.cond(
            jnp.any(action != NOTHING), lambda: every_lane(action, state, *args), lambda: spread
        )
        return new, jax.tree.map(lambda _: True, new)

    return run


def prune(
    optimizer: optax.GradientTransformationExtraArgs,
    selection: Selection,
    *,
    method: str,
    together: bool = False,
    rewinds: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """An optimiser whose parameters are masked.

    `update` takes the keyword arguments of `Numbers` (`pruning`, `keep`, `exchange`) and `seed`, in
    addition to those of the optimiser. Masks change before the update, according to the parameters
    before it and its gradient. The inner optimiser then gets the gradient of the remaining weights.

    Args:
      optimizer: to wrap.
      selection: the kernels to prune.
      method: "magnitude": |w|. "random": an order fixed by the seed. "saliency": |g w| on the batch
        of the update (SNIP, Lee et al. 2019, arXiv 1810.02340, if it is the first one). "rigl":
        random at first, then the smallest weights are exchanged for those with the largest gradient
        (Evci et al. 2020, arXiv 1911.11134); grown weights start at 0. "set": the same with random
        growth (Mocanu et al. 2018, arXiv 1707.04780). "zeros": weights that are 0 at the start stay
        0.
      together: rank the weights of all kernels in one order.
      rewinds: every change of masks resets the remaining weights to their values at an earlier
        update that remembered them, and resets the optimiser (lottery ticket with rewinding,
        Frankle et al. 2019, arXiv 1903.01611). Batch statistics are not parameters, so they are not
        reset.
    """

    def init(params: Any) -> PruneState:
        chosen = {tensor.path: flatten(params)[tensor.path] for tensor in selection(params)}
        made = {
            path: leaf != 0 if method == "zeros" else jnp.ones(leaf.shape, bool)
            for path, leaf in chosen.items()
        }
        remembered = jax.tree.map(jnp.copy, params) if rewinds else {}
        inner = optimizer.init(params)
        return PruneState(nest(made), jnp.int32(0), _zeros_in(made), remembered, inner)

    def change(
        action: jax.Array, state: tuple[Any, ...], params: Any, grads: Any, numbers: Any
    ) -> tuple[Any, ...]:
        """The state with new masks, or with the parameters remembered."""
        old, changes, _, remembered = state
        weights, gradients = flatten(params), flatten(grads)
        tensors = selection(params)
        names = {str(index): tensor.path for index, tensor in enumerate(tensors)}
        size = {name: jnp.abs(weights[path]) for name, path in names.items()}

        def order(name: str) -> jax.Array:
            shape = size[name].shape
            return masking.random_scores(shape, numbers["seed"], ORDER_STREAM, int(name))

        before = flatten(old)
        if method in REGROWING:
            made = {}
            for index, (name, path) in enumerate(names.items()):
                growth = jnp.abs(gradients[path])
                if method == "set":
                    growth = masking.random_scores(
                        growth.shape, numbers["seed"], GROWTH_STREAM, index, changes
                    )
                made[name] = masking.regrow(
                    before[path],
                    size[name],
                    jnp.where(changes == 0, order(name), growth),
                    numbers["keep"][index],
                    numbers["exchange"],
                )
        else:
            scores = {
                "magnitude": lambda name: size[name],
                "random": order,
                "saliency": lambda name: size[name] * jnp.abs(gradients[names[name]]),
            }[method]
            # Removed weights stay removed, even if other weights have a score of 0.
            made = masking.make_masks(
                {name: jnp.where(before[path], scores(name), -1.0) for name, path in names.items()},
                numbers["keep"],
                selection.pattern,
                together=together,
            )
        chosen = action == CHANGE
        masks = nest({path: made[name] for name, path in names.items()})
        masks = jax.tree.map(lambda new, mask: jnp.where(chosen, new, mask), masks, old)
        remembered = jax.tree.map(
            lambda kept, now: jnp.where(action == REMEMBER, now, kept),
            remembered,
            params if rewinds else {},
        )
        return masks, changes + chosen.astype(jnp.int32), _zeros_in(masks), remembered

    occasionally = _occasionally(change)

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, PruneState]:
        masks, changes, sparsity, remembered = state[:4]
        if method != "zeros":
            numbers = {name: extra[name] for name in ("keep", "exchange", "seed")}
            masks, changes, sparsity, remembered = occasionally(
                extra["pruning"], state[:4], params, updates, numbers
            )
        # The inner optimiser gets the gradient of the remaining weights.
        updates = apply_masks(masks, updates)
        updates, inner = optimizer.update(updates, state.inner, params, **extra)
        if rewinds:
            back = extra["pruning"] == CHANGE
            updates, inner = jax.tree.map(
                lambda then, now: jnp.where(back, then, now),
                (jax.tree.map(jnp.subtract, remembered, params), optimizer.init(params)),
                (updates, inner),
            )
        # Removed weights become exactly 0.
        updates = _where_kept(masks, updates, jax.tree.map(jnp.negative, params))
        return updates, PruneState(masks, changes, sparsity, remembered, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def settle(state: PruneState, average: Any) -> Any:
    """Averaged parameters under the masks: a removed weight is also removed from the average."""
    return apply_masks(state.masks, average)


def observe(state: PruneState) -> dict[str, jax.Array]:
    """The metrics of pruning that a training step reports."""
    return {"sparsity": state.sparsity}


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Step -> the numbers that an update gets; made on the host, like a learning rate.

    Attributes:
      tensors: that are pruned.
      schedule: of changes and targets.
      distribution, pattern: as for `rules.keep_counts`.
      active: False for masks that never change.
    """

    tensors: tuple[Tensor, ...]
    schedule: Schedule
    distribution: str
    pattern: Pattern
    active: bool = True

    def __call__(self, step: int) -> dict[str, Any]:
        """The numbers for the update that follows `step` completed ones.

        `pruning` int32 is NOTHING, CHANGE or REMEMBER. `keep` int32 is, at a change, the number of
        units that each kernel keeps, or [1] for all kernels. `exchange` float32 is the fraction
        that a regrowing method exchanges.
        """
        schedule, action = self.schedule, NOTHING
        if self.active:
            if schedule.changes(step):
                action = CHANGE
            elif step == schedule.rewind:
                action = REMEMBER
        together = self.distribution == "global" and self.pattern.kind != "n_of_m"
        keep = np.zeros(1 if together else len(self.tensors), np.int32)
        if action == CHANGE:
            target = schedule.sparsity(step)
            keep = keep_counts(self.tensors, target, self.distribution, self.pattern)
        return {
            "pruning": np.int32(action),
            "keep": keep,
            "exchange": np.float32(schedule.exchanged(step)),
        }


def report(params: Any, selection: Selection) -> dict[str, Any]:
    """Counts the zeros of the parameters themselves, not those of the masks.

    Args:
      params: the parameters.
      selection: the pruned kernels.

    Returns:
      `tensors` (sparsity of each pruned module), `prunable` (over the weights of these modules),
      `model` (over all parameters), and the counts `weights`, `zeros`, `params`.
    """
    leaves = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    chosen = selection(params)
    zeros = {tensor.name: int(np.sum(leaves[tensor.path] == 0)) for tensor in chosen}
    weights = sum(tensor.size for tensor in chosen)
    total = sum(leaf.size for leaf in leaves.values())
    return {
        "tensors": {tensor.name: zeros[tensor.name] / tensor.size for tensor in chosen},
        "prunable": sum(zeros.values()) / weights,
        "model": sum(int(np.sum(leaf == 0)) for leaf in leaves.values()) / total,
        "weights": weights,
        "zeros": sum(zeros.values()),
        "params": total,
    }
