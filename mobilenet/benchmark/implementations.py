"""The objects that a benchmark times: one step of one implementation, ready for repeated calls.

All implementations of a case start from the same variables and get the same images, so the losses
of their first steps can be compared: a fast step that computes something else is refused.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mobilenet import architecture, build
from mobilenet import config as config_lib
from mobilenet.benchmark import plain
from mobilenet.config import Config
from mobilenet.models.layers import ConvBNAct
from mobilenet.models.mobilenet_v2 import InvertedResidual
from mobilenet.models.network import Network
from mobilenet.train import steps

# Of the images; the steps of PyTorch and of this project both normalise uint8 images themselves.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

NAMES = {
    "ours": "the configuration as it is",
    "flax": "plain Flax: nn.Conv (grouped), nn.BatchNorm",
    "grouped": "the configuration with conv_form=grouped",
    "shifted": "the configuration with conv_form=shifted",
    "remat": "the configuration with remat",
    "qat": "the configuration with quantisers, 8 bits everywhere",
    "pruned": "the configuration with masks, between two changes of them",
    "pillow": "Pillow: decode whole, crop, resize (work: input)",
    "tf_data": "tf.data: decode the crop, resize, one thread (work: input)",
    "torch": "PyTorch, channels last, eager",
    "torch_compile": "PyTorch, channels last, torch.compile",
}
# Changes of the configuration for each implementation of this project.
CHANGES: dict[str, dict[str, Any]] = {
    "grouped": {"model.conv_form": "grouped"},
    "shifted": {"model.conv_form": "shifted"},
    "remat": {"model.remat": True},
    "qat": {"quantize.weights.bits": 8, "quantize.activations.bits": 8},
    "pruned": {
        "compress.pruning.method": "magnitude",
        "compress.pruning.sparsity": 0.9,
        # Never reached: no weight is removed, so the losses of a case agree.
        "compress.pruning.start_epoch": 9.0,
        "train.num_epochs": 10.0,
    },
}
STEPS_PER_EPOCH = 10_000
WORK = ("train", "evaluate", "block", "input")


@dataclasses.dataclass(frozen=True)
class Spec:
    """One implementation of one kind of work.

    Attributes:
      implementation: a key of `NAMES`.
      work: "train", a whole update; "evaluate", uint8 images to logits; "block", one block or the
        stem or the head in training, forward and backward; "input", JPEG files to random crops.
      batch_size: images per step.
      num_classes: of the classifier.
      block: "stem", "head" or a block's name ("blocks_1_0") for the work "block".
    """

    implementation: str
    work: str
    batch_size: int
    num_classes: int
    block: str = ""


@dataclasses.dataclass(frozen=True)
class Implementation:
    """An implementation that is ready for timing.

    Attributes:
      step: starts one step and returns an object to wait for.
      wait: returns when that object is computed.
      check: maps the result of `step` to a number (the loss, or a mean square). All implementations
        of a case must agree on it at the first step.
      analyse: the compiler's information about the step, `temp_bytes` and `accessed_bytes`, and
        `bytes_per_second` of a plain pass over memory. May compile.
    """

    step: Callable[[], Any]
    wait: Callable[[Any], Any]
    check: Callable[[Any], float]
    analyse: Callable[[], dict[str, float]]


def normalization(config: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel."""
    return MEAN[: config.data.channels], STD[: config.data.channels]


def make_batch(config: Config, spec: Spec) -> dict[str, np.ndarray]:
    """A batch of uint8 noise images [B, S, S, C] and labels, the same for all implementations."""
    rng = np.random.default_rng(0)
    shape = (spec.batch_size, *architecture.image_shape(config))
    return {
        "image": rng.integers(0, 256, shape, np.uint8),
        "label": rng.integers(0, spec.num_classes, spec.batch_size).astype(np.int32),
        "index": np.arange(spec.batch_size, dtype=np.int32),
        "epoch": np.zeros(spec.batch_size, np.int32),
    }


def block_input(config: Config, spec: Spec) -> np.ndarray:
    """Activations [B, H, W, C], normal noise, of the shape that enters `spec.block`.

    Raises:
      ValueError: the network has no such block.
    """
    plan = architecture.plan(config.model)
    side, channels = config.data.image_size, config.data.channels
    shapes = {"stem": (side, channels)}
    side, channels = -(-side // plan.stem_strides), plan.stem_features
    for block in plan.blocks:
        shapes[block.name] = (side, channels)
        side, channels = -(-side // block.strides), block.features
    shapes["head"] = (side, channels)
    if spec.block not in shapes:
        raise ValueError(f"The block is {spec.block!r}; allowed are {', '.join(shapes)}.")
    side, channels = shapes[spec.block]
    shape = (spec.batch_size, side, side, channels)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def prepare(config: Config, spec: Spec) -> Implementation:
    """Builds an implementation; nothing is compiled yet.

    Raises:
      ImportError: PyTorch is not installed.
      ValueError: PyTorch's network here does not support the configuration.
    """
    if spec.work == "input":
        from mobilenet.benchmark import input_implementations

        return input_implementations.prepare(config, spec)
    if spec.implementation.startswith("torch"):
        from mobilenet.benchmark import torch_implementations  # PyTorch is an extra

        return torch_implementations.prepare(config, spec)
    return _prepare_jax(config, spec)


def _prepare_jax(config: Config, spec: Spec) -> Implementation:
    config = config.copy_and_resolve_references()
    config_lib.update(config, CHANGES.get(spec.implementation, {}))
    model = architecture.build_model(config, spec.num_classes)
    if spec.implementation == "flax":
        model = model.clone(conv=plain.conv, norm=plain.norm, conv_form="grouped")
    make = {"train": _jax_train, "evaluate": _jax_evaluate, "block": _jax_block}[spec.work]
    return make(config, spec, model)


def device_peak(spec: Spec) -> int:
    """Most bytes in use on an accelerator so far; 0 on CPU, where the process is measured."""
    if spec.implementation.startswith("torch"):
        from mobilenet.benchmark import torch_implementations

        return torch_implementations.device_peak()
    return int((jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0))


def _copy_speed() -> float:
    """Bytes per second, read and written, of a plain element-wise pass over 256 MB."""
    add = jax.jit(lambda x: x + 1)
    x = jnp.zeros(1 << 26, jnp.float32)
    jax.block_until_ready(add(x))
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        jax.block_until_ready(add(x))
        seconds.append(time.perf_counter() - started)
    return 2 * x.nbytes / min(seconds)


def _analysis(lower: Callable[[], Any]) -> dict[str, float]:
    found = {"bytes_per_second": _copy_speed()}
    compiled = lower().compile()
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    if memory is not None:
        found["temp_bytes"] = float(memory.temp_size_in_bytes)
    if "bytes accessed" in costs:
        found["accessed_bytes"] = float(costs["bytes accessed"])
    return found


def _jax_train(config: Config, spec: Spec, model: Network) -> Implementation:
    augment = build.build_augment(config, *normalization(config))
    update: Any = build.build_train_step(config, model, augment)
    given, variables = make_batch(config, spec), None
    if config_lib.is_quantized(config):
        normalised = np.asarray(build.preprocess(*normalization(config))(given["image"]))
        variables, _ = build.quantize_by_pictures(
            config,
            spec.num_classes,
            build.init_variables(config, spec.num_classes),
            lambda: [normalised],
            STEPS_PER_EPOCH,
        )
    state: Any = steps.place(build.init_state(config, spec.num_classes, variables=variables))
    batch = steps.shard(given)
    numbers = None
    if config_lib.is_pruned(config):
        shapes = build.parameter_shapes(config, spec.num_classes)
        total = int(config.train.num_epochs * STEPS_PER_EPOCH)
        numbers = build.build_pruning(config, shapes, STEPS_PER_EPOCH, total)
    taken = 0

    def hyper() -> dict[str, Any]:
        always = build.hyperparameters(config, config.optimizer.learning_rate)
        return {**always, **(numbers(taken) if numbers else {})}

    def step() -> Any:
        nonlocal state, taken
        state, metrics = update(state, batch, hyper())
        taken += 1
        return metrics

    return Implementation(
        step,
        # The state too: metrics are ready before the parameters are updated.
        lambda metrics: jax.block_until_ready((metrics, state)),
        lambda metrics: float(metrics["loss"][0] / metrics["loss"][1]),
        lambda: _analysis(lambda: update.lower(state, batch, hyper())),
    )


def _jax_evaluate(config: Config, spec: Spec, model: Network) -> Implementation:
    variables = jax.device_put(build.init_variables(config, spec.num_classes))
    images = make_batch(config, spec)["image"]
    apply = jax.jit(build.build_forward(model, *normalization(config)))
    return Implementation(
        lambda: apply(variables, images),
        jax.block_until_ready,
        lambda logits: float(np.square(np.asarray(logits)).mean()),
        lambda: _analysis(lambda: apply.lower(variables, images)),
    )


def _jax_block(config: Config, spec: Spec, model: Network) -> Implementation:
    plan = architecture.plan(config.model)
    conv, norm = model.constructors()
    blocks = {block.name: block for block in plan.blocks}
    if spec.block in blocks:
        block = InvertedResidual(
            blocks[spec.block],
            conv,
            norm,
            config.model.activation,
            config.model.bottleneck_activation,
            config.model.kernel_size,
            config.model.se_gate,
            model.dtype,
        )
    else:
        stem = spec.block == "stem"
        block = ConvBNAct(
            conv,
            norm,
            features=plan.stem_features if stem else plan.head_features,
            kernel_size=3 if stem else 1,
            strides=plan.stem_strides if stem else 1,
            activation=config.model.activation,
        )
    x = jnp.asarray(block_input(config, spec), model.dtype)
    arguments = (x, None, True) if spec.block in blocks else (x, True)
    variables = build.init_variables(config, spec.num_classes)
    params, stats = variables["params"][spec.block], variables["batch_stats"][spec.block]

    def loss(params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        result, updated = block.apply(
            {"params": params, "batch_stats": stats}, x, *arguments[1:], mutable=["batch_stats"]
        )
        y = result[0] if isinstance(result, tuple) else result
        return jnp.square(y.astype(jnp.float32)).mean(), updated

    # The stem's input is the image, whose gradient is not needed.
    wanted = 0 if spec.block == "stem" else (0, 1)
    gradient = jax.jit(jax.value_and_grad(loss, wanted, has_aux=True))
    return Implementation(
        lambda: gradient(params, x),
        jax.block_until_ready,
        lambda result: float(result[0][0]),
        lambda: _analysis(lambda: gradient.lower(params, x)),
    )
