"""The training and evaluation steps: pure functions, and the only explicit collectives.

The state is not stacked (`in_axes=None`, `out_axes=None`); only batches are split over devices.
Results do not depend on how a global batch is divided: augmentation and dropout use keys derived
from (seed, epoch, example index), and gradients and metrics are summed over all devices.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from mobilenet.train import losses
from mobilenet.train.state import TrainState

AXIS = "batch"
# Streams of randomness, folded into the run's seed.
AUGMENT_STREAM, DROPOUT_STREAM = 1, 2

Batch = Mapping[str, jax.Array]
Hyper = Mapping[str, jax.Array]
Loss = Callable[[jax.Array, jax.Array], jax.Array]
# (values [B], the network's output, images, hyper, given) -> values [B]
Guide = Callable[..., jax.Array]


def make_train_step(
    apply: Callable[..., Any],
    optimizer: optax.GradientTransformationExtraArgs,
    augment: Callable[..., tuple[jax.Array, jax.Array]],
    example_keys: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    *,
    loss: Loss = losses.cross_entropy,
    num_classes: int,
    accumulation_steps: int = 1,
    average_batch_stats: bool = False,
    ema: bool = False,
    settle: Callable[[Any, Any], Any] | None = None,
    observe: Callable[[Any], Mapping[str, jax.Array]] = lambda opt_state: {},
    guide: Guide | None = None,
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """One update as a function to be mapped over devices along `AXIS`.

    Args:
      apply: the model's `apply`.
      optimizer: from `mobilenet.train.optim.make_optimizer`.
      augment: (keys [B], uint8 images, labels, num_classes) -> (float images, soft targets [B, K]).
      example_keys: (key, epoch [B], index [B]) -> keys [B].
      loss: (logits, targets) -> one value per example.
      accumulation_steps: number of parts that a device computes one after the other; BN statistics
        are those of one part.
      average_batch_stats: average the running statistics over devices after the step, for BN that
        is local or grouped.
      ema: keep an average of weights and statistics.
      settle: (state of the optimiser, averaged parameters) -> the parameters to use: an optimiser
        that constrains the parameters also constrains their average.
      observe: state of the optimiser -> further metrics, scalars.
      guide: changes the loss with further knowledge about the images, such as a teacher's outputs.
        The model's output is then (logits, endpoints), and the step has a fourth argument for it.

    The step's batch holds `image` uint8 [B, H, W, C], `label`, `index`, `epoch` int32 [B]. `hyper`
    holds the scalars `seed` (uint32), `label_smoothing`, `ema_decay`, and those of the optimiser:
    `learning_rate`, `weight_decay`, `backbone_rate`, `step_rate`, and further ones.
    The step returns the new state and metrics as (sum, count) over all devices.
    """

    def part_loss(
        params: Any, collections: Any, batch: Batch, hyper: Hyper, given: Any
    ) -> tuple[jax.Array, tuple[Any, jax.Array]]:
        seed = jax.random.key(hyper["seed"])
        keys = [
            example_keys(jax.random.fold_in(seed, stream), batch["epoch"], batch["index"])
            for stream in (AUGMENT_STREAM, DROPOUT_STREAM)
        ]
        images, targets = augment(keys[0], batch["image"], batch["label"], num_classes)
        output, updated = apply(
            {"params": params, **collections},
            images,
            True,
            dropout_keys=keys[1],
            mutable=list(collections),
        )
        logits = output if guide is None else output[0]
        values = loss(logits, losses.smooth(targets, hyper["label_smoothing"]))
        if guide is not None:
            values = guide(values, output, images, hyper, given)
        correct = jnp.argmax(logits, -1) == jnp.argmax(targets, -1)
        sums = jnp.stack([values.sum(), correct.sum().astype(jnp.float32)])
        return values.mean(), ({**collections, **updated}, sums)

    gradient = jax.grad(part_loss, has_aux=True)

    def step(
        state: TrainState, batch: Batch, hyper: Hyper, given: Any = None
    ) -> tuple[TrainState, dict[str, Any]]:
        collections = {"batch_stats": state.batch_stats, "quant": state.quant}
        if accumulation_steps == 1:
            grads, (collections, sums) = gradient(state.params, collections, batch, hyper, given)
        else:

            def accumulate(carry: Any, part: Batch) -> tuple[Any, None]:
                grads, collections, sums = carry
                new, (collections, part_sums) = gradient(
                    state.params, collections, part, hyper, given
                )
                return (jax.tree.map(jnp.add, grads, new), collections, sums + part_sums), None

            parts = {
                name: value.reshape(accumulation_steps, -1, *value.shape[1:])
                for name, value in batch.items()
            }
            zeros = jax.tree.map(jnp.zeros_like, state.params)
            carry = (zeros, collections, jnp.zeros(2))
            (grads, collections, sums), _ = lax.scan(accumulate, carry, parts)
            grads = jax.tree.map(lambda g: g / accumulation_steps, grads)

        grads = _mean(grads)
        batch_stats, quant = collections["batch_stats"], collections["quant"]
        if average_batch_stats:
            batch_stats = _mean(batch_stats)
        sums = lax.psum(sums, AXIS)
        count = jnp.float32(batch["label"].shape[0] * lax.axis_size(AXIS))

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, **hyper)
        params = optax.apply_updates(state.params, updates)
        average = state.ema
        if ema:
            # Early averages forget the initial values faster, like TensorFlow's num_updates.
            done = state.step.astype(jnp.float32)
            decay = jnp.minimum(hyper["ema_decay"], (1.0 + done) / (10.0 + done))
            average = jax.tree.map(
                lambda old, new: decay * old + (1.0 - decay) * new,
                state.ema,
                {"params": params, "batch_stats": batch_stats},
            )
            if settle is not None:
                average = {**average, "params": settle(opt_state, average["params"])}
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=average,
            quant=quant,
        )
        one = jnp.float32(1.0)
        return new_state, {
            "loss": (sums[0], count),
            "accuracy": (sums[1], count),
            "gradient_norm": (_norm(grads), one),
            **{name: (value, one) for name, value in observe(opt_state).items()},
        }

    return step


def _mean(tree: Any) -> Any:
    """Mean over devices; on one device the reductions would be copies that XLA does not remove."""
    return tree if lax.axis_size(AXIS) == 1 else lax.pmean(tree, AXIS)


def make_eval_step(
    forward: Callable[[Any, jax.Array], jax.Array], *, num_classes: int
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """Evaluation of one batch as a function to be mapped over devices along `AXIS`.

    Args:
      forward: (variables, uint8 images) -> logits.

    It takes variables and a batch with `image`, `label`, `index`, `mask`, and returns one row an
    example of the whole global batch: `index`, `label`, `mask`, `loss`, `top` [B, min(5, K)],
    `logits` [B, K].
    """

    def step(variables: Any, batch: Batch) -> dict[str, jax.Array]:
        logits = forward(variables, batch["image"])
        targets = jax.nn.one_hot(batch["label"], num_classes)
        rows = {
            "index": batch["index"],
            "label": batch["label"],
            "mask": batch["mask"],
            "loss": losses.cross_entropy(logits, targets),
            "top": lax.top_k(logits, min(5, num_classes))[1].astype(jnp.int32),
            # Always, so that training, `evaluate` and `predict` share one compiled program.
            "logits": logits,
        }
        return lax.all_gather(rows, AXIS, tiled=True)

    return step


def _norm(tree: Any) -> jax.Array:
    """Euclidean norm over all leaves, as one reduction: one per leaf doubles the compile time."""
    flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
    return jnp.sqrt(jnp.sum(jnp.square(flat)))


def map_train_step(
    step: Callable[..., Any], *, lanes: bool = False, guided: bool = False
) -> Callable[..., Any]:
    """Maps a training step over all devices; the state is donated.

    Args:
      step: from `make_train_step`.
      lanes: train several runs at once: state, batch and scalars have a leading lane axis. In the
        batch it comes after the axis of devices.
      guided: the step has a fourth argument, which is the same for all devices and lanes.
    """
    more = (None,) if guided else ()
    if lanes:
        step = jax.vmap(step, in_axes=(0, 0, 0, *more))
    axes = (None, 0, None, *more)
    return jax.pmap(step, AXIS, in_axes=axes, out_axes=(None, None), donate_argnums=(0,))


def map_eval_step(step: Callable[..., Any], *, lanes: bool = False) -> Callable[..., Any]:
    """Maps an evaluation step over all devices; with lanes, each lane gets the same batch."""
    if lanes:
        step = jax.vmap(step, in_axes=(0, None))
    return jax.pmap(step, AXIS, in_axes=(None, 0), out_axes=None)


def place(tree: Any) -> Any:
    """Puts a state on this process's devices in the form that a mapped step returns.

    A state in any other form (from the host, from one device) would make the first step's program
    differ from the second's, so that it would be compiled twice.
    """
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def shard(batch: Mapping[str, Any], *, lanes: bool = False) -> dict[str, Any]:
    """Splits a process's batch [b, ...] into [local devices, b / devices, ...].

    With lanes, [lanes, b, ...] becomes [local devices, lanes, b / devices, ...].
    """
    devices = jax.local_device_count()

    def split(value: Any) -> Any:
        if not lanes:
            return value.reshape(devices, -1, *value.shape[1:])
        return value.reshape(value.shape[0], devices, -1, *value.shape[2:]).swapaxes(0, 1)

    return {name: split(value) for name, value in batch.items()}


def bn_groups(devices: int, statistics: str, group_size: int) -> tuple[str | None, Any]:
    """(axis_name, axis_index_groups) for BN "sync", "group" or "local" on `devices`."""
    if statistics == "local" or devices == 1:
        return None, None
    if statistics == "sync":
        return AXIS, None
    groups = tuple(
        tuple(range(start, start + group_size)) for start in range(0, devices, group_size)
    )
    return AXIS, groups
