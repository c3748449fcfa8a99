"""MobileNetV2s of four blocks with random variables, in float and quantised."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from mobilenet.models.mobilenet_v2 import BlockSpec, MobileNetV2, plan_blocks
from mobilenet.quantize import layers, ptq
from mobilenet.quantize.rules import Rules, parse

SHAPE = (8, 8, 3)
TABLE = (BlockSpec(1, 8, 1, 1), BlockSpec(2, 16, 3, 2))
# Every option of a plan that changes how layers are connected.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "squeeze": {"se_ratio": 0.5},
    "projection": {"shortcut_projection": True, "stem_features": 16},
    "expansion": {"shortcut": "expansion"},
    "chain": {"shortcut": "none", "head_features": 0},
}
W8A8 = {
    "weights": {"bits": 8, "symmetric": True, "per_channel": True, "estimator": "min_max",
                "ranges": "follow"},
    "activations": {"bits": 8, "symmetric": False, "estimator": "min_max", "ranges": "observe"},
}  # fmt: skip


@contextlib.contextmanager
def quick_compilation(directory: Path) -> Iterator[None]:
    """Compiles each program once, without most optimisations, and keeps it in `directory`.

    Tests of networks this small spend nearly all of their time in the compiler.
    """
    with _configured(
        jax_compilation_cache_dir=str(directory),
        jax_persistent_cache_min_compile_time_secs=0.0,
        jax_disable_most_optimizations=True,
    ):
        yield


@contextlib.contextmanager
def optimised() -> Iterator[None]:
    """Compiles with all optimisations, for programs that run longer than they compile."""
    with _configured(jax_disable_most_optimizations=False):
        yield


@contextlib.contextmanager
def _configured(**changes: Any) -> Iterator[None]:
    before = {name: jax.config.values[name] for name in changes}
    for name, value in changes.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # one that is in use keeps its directory
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def network(
    variant: str = "plain", blocks: tuple[BlockSpec, ...] = TABLE, **settings: Any
) -> MobileNetV2:
    """Of VARIANTS; `settings` are of the network."""
    options = {"stem_features": 8, "stem_strides": 1, "head_features": 24, **VARIANTS[variant]}
    # Grouped convolutions compile fastest.
    settings = {"conv_form": "grouped", **settings}
    return MobileNetV2(plan_blocks(blocks=blocks, **options), 5, **settings)


def random_variables(
    net: MobileNetV2, seed: int = 0, shape: tuple[int, int, int] = SHAPE
) -> dict[str, Any]:
    """`params` and `batch_stats` on the host, with normalisations that differ by channel."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)))
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        name, shape = path[-1].key, leaf.shape
        if name == "kernel":
            return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)
        if name in ("scale", "var"):
            return np.exp(rng.uniform(-0.7, 0.7, shape)).astype(np.float32)
        return rng.normal(0.1, 0.3, shape).astype(np.float32)

    found = jax.tree_util.tree_map_with_path(draw, dict(shapes))
    return {name: found[name] for name in ("params", "batch_stats")}


def settled(net: MobileNetV2, variables: Mapping[str, Any], x: np.ndarray) -> dict[str, Any]:
    """The variables with the statistics of these images, as the end of training leaves them."""
    learner = net.clone(bn_momentum=0.0)
    run = jax.jit(lambda v, x: learner.apply(v, x, True, mutable=["batch_stats"])[1])
    return {**variables, **jax.device_get(run(variables, x))}


def images(count: int, seed: int = 0) -> np.ndarray:
    """Normalised images."""
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


def make_rules(
    *rows: tuple[str, str],
    weights: Mapping[str, Any] | None = None,
    activations: Mapping[str, Any] | None = None,
) -> Rules:
    """8 bits everywhere, changed."""
    return parse(
        W8A8["weights"] | dict(weights or {}), W8A8["activations"] | dict(activations or {}), rows
    )


def quantized(net: MobileNetV2, rules: Rules | None = None, **options: Any) -> Any:
    """The network with quantisers; `options` are of `layers.quantize_network`."""
    return layers.quantize_network(net, rules or make_rules(), **options)


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(net: Any, variables: Any, x: Any) -> Any:
    return net.apply(variables, x, False)


def apply(net: Any, variables: Any, x: np.ndarray) -> np.ndarray:
    """Logits in evaluation, compiled once for each network and structure of its variables."""
    return np.asarray(_evaluate(net, variables, x))


def prepared(net: Any, rules: Rules, variables: Any, **settings: Any) -> dict[str, Any]:
    """Variables of a quantised network, calibrated on 16 images; normalisation is kept."""
    options = ptq.Settings(**{"fold": False, **settings})
    return ptq.prepare(net, rules, variables, lambda: [images(16)], SHAPE, options)[0]
