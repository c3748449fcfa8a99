"""The state that a training run passes from step to step."""

from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class TrainState:
    """Everything that the next step depends on, besides its batch.

    Attributes:
      step: number of updates made, int32 scalar.
      params: float32 parameters.
      batch_stats: running BN statistics, float32.
      quant: bits and ranges of a quantised network, float32; {} for other networks.
      opt_state: of the optimiser; also holds the masks of compression.
      ema: {"params", "batch_stats"} averaged over steps, or {} if off. The statistics are averaged
        with the weights, because they belong to the weights that produced them.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    quant: Any = flax.struct.field(default_factory=dict)

    if TYPE_CHECKING:  # what the decorator adds

        def replace(self, **changes: Any) -> "TrainState": ...

    @property
    def eval_variables(self) -> dict[str, Any]:
        """The variables that are evaluated and exported: the averaged ones, if there are any."""
        return evaluated(self.params, self.batch_stats, self.ema, self.quant)


def evaluated(params: Any, batch_stats: Any, ema: Any, quant: Any) -> dict[str, Any]:
    """The variables to evaluate, from the parts of a state: the averaged ones, if there are any."""
    variables = dict(ema) if ema else {"params": params, "batch_stats": batch_stats}
    # Ranges are averages already, and belong to the current activations.
    return {**variables, "quant": quant} if quant else variables


def to_host(tree: Any) -> Any:
    """Copies a pytree into NumPy arrays that own their memory.

    A copy, not a view: on CPU a view would alias a buffer that the next step donates and overwrites
    while a checkpoint is still being written from it.
    """
    return jax.tree.map(lambda leaf: np.array(jax.device_get(leaf), copy=True), tree)


def create(variables: Any, optimizer: Any, *, ema: bool) -> TrainState:
    """A state at step 0 from `model.init`'s variables."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    average = {}
    if ema:
        # Copies: an alias would be donated twice by the first step.
        average = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema=average,
        quant=variables.get("quant", {}),
    )
