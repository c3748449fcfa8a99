"""Training states of a few numbers, and their files, for the tests of checkpoints."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mobilenet.train import optim, state


def make_state(
    step: int = 0, *, width: int = 3, optimizer: str = "rmsprop", ema: bool = True
) -> Any:
    kernel = jnp.arange(4 * width, dtype=jnp.float32).reshape(4, width) / 7 + step
    variables = {
        "params": {"stem": {"conv": {"kernel": kernel}}},
        "batch_stats": {"stem": {"bn": {"mean": jnp.ones(width) * step}}},
    }
    chosen = optim.make_optimizer(optimizer)
    return state.create(variables, chosen, ema=ema).replace(step=jnp.int32(step))


def assert_same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
