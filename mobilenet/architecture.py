"""The network and its costs, from `config.model` and `config.quantize`."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from mobilenet.config import (
    ACTIVATIONS,
    Config,
    ConfigError,
    computed_activation,
    is_quantized,
    quantization_rules,
)
from mobilenet.models import cost, mobilenet_v1, mobilenet_v3, resnet, tracing
from mobilenet.models.mobilenet_v2 import BlockSpec, MobileNetV2, Plan, plan_blocks
from mobilenet.models.network import Network
from mobilenet.quantize.layers import quantize_network
from mobilenet.train import steps


def plan(model: Config) -> Plan:
    """MobileNetV2's channel counts, strides and shortcuts from `config.model`.

    Raises:
      ConfigError: the network is another one, whose blocks have another kind of plan, or widths do
        not fit the blocks.
    """
    if model.name != "mobilenet_v2":
        raise ConfigError(
            f"model.name is {model.name!r}, but this needs the block plan of mobilenet_v2."
        )
    try:
        return plan_blocks(
            blocks=tuple(BlockSpec(*row) for row in model.blocks),
            width_multiplier=model.width_multiplier,
            expansion_ratio=model.expansion_ratio,
            expanded_features=model.expanded_features,
            stem_features=model.stem_features,
            stem_strides=model.stem_strides,
            stage_strides=model.stage_strides or None,
            head_features=model.head_features,
            shrink_head=model.shrink_head,
            divisor=model.divisor,
            expand_always=model.expand_always,
            shortcut=model.shortcut,
            shortcut_projection=model.shortcut_projection,
            se_ratio=model.se_ratio,
            se_base=model.se_base,
            se_divisor=model.se_divisor,
            output_stride=model.output_stride,
        )
    except ValueError as error:
        raise ConfigError(f"The network cannot be built: {error}") from error


def _constructor(model: Config) -> Callable[..., Network]:
    """The network's class, with its plan and the settings that only this network has."""
    if model.name == "mobilenet_v2":
        return functools.partial(
            MobileNetV2,
            plan=plan(model),
            activation=model.activation,
            bottleneck_activation=model.bottleneck_activation,
            kernel_size=model.kernel_size,
            se_gate=model.se_gate,
        )
    sizes: dict[str, Any] = {
        "width_multiplier": model.width_multiplier,
        "stem_strides": model.stem_strides,
        "stage_strides": model.stage_strides or None,
        "divisor": model.divisor,
    }
    if model.name == "mobilenet_v1":
        return functools.partial(
            mobilenet_v1.MobileNetV1,
            plan=mobilenet_v1.plan_blocks(**sizes),
            activation=model.activation,
        )
    if model.name in mobilenet_v3.TABLES:
        found = mobilenet_v3.plan_blocks(*mobilenet_v3.TABLES[model.name], **sizes)
        return functools.partial(mobilenet_v3.MobileNetV3, plan=found)
    found = resnet.plan_blocks(*resnet.TABLES[model.name], **sizes)
    return functools.partial(resnet.ResNet, plan=found)


def build_model(config: Config, num_classes: int, *, devices: int | None = None) -> Network:
    """The network of a configuration.

    Args:
      config: complete configuration.
      num_classes: of the classifier; 0 for the feature extractor.
      devices: over which BN statistics may be shared in training; None for use on one device
        without a mapped axis, as in a notebook.
    """
    network = build_float(config, num_classes, devices=devices)
    if is_quantized(config):
        return quantized(network, config, steps.AXIS if devices is not None else None)
    if config.finetune.batch_norm == "frozen":
        return network.clone(frozen=network.modules)
    return network


def build_float(config: Config, num_classes: int, *, devices: int | None = None) -> Network:
    """`build_model` without quantisers, and with normalisation that is not frozen."""
    model = config.model
    axis, groups = None, None
    if devices is not None:
        axis, groups = steps.bn_groups(devices, model.bn_statistics, model.bn_group_size)
    network = _constructor(model)(
        num_classes=num_classes,
        dropout_rate=model.dropout_rate,
        padding=model.padding,
        bn_momentum=model.bn_momentum,
        bn_epsilon=model.bn_epsilon,
        bn_axis_name=axis,
        bn_axis_index_groups=groups,
        initializer=model.initializer,
        dtype=jnp.dtype(model.dtype),
        conv_form=model.conv_form,
        remat=model.remat,
    )
    return network.clone(frozen=frozen_modules(network, config.finetune))


def quantized(network: Network, config: Config, axis_name: str | None = None) -> Network:
    """The network with the quantisers of `config.quantize`.

    Args:
      network: in float.
      config: complete configuration.
      axis_name: mapped axis of the devices that train it together, over which ranges are observed.
    """
    statistics = "batch_then_running" if config.quantize.batch_norm_epochs else "batch"
    if config.finetune.batch_norm == "frozen":  # ranges are observed nevertheless
        statistics = "running"
    computed = {key: computed_activation(config, key) for key in ACTIVATIONS}
    changed: dict[str, Any] = {k: v for k, v in computed.items() if v != config.model[k]}
    return quantize_network(
        network.clone(**changed),
        quantization_rules(config),
        axis_name=axis_name,
        statistics=statistics,
    )


def frozen_modules(model: Network, finetune: Config) -> tuple[str, ...]:
    """Names of the modules whose parameters do not change: all before `finetune.train_from`.

    Raises:
      ConfigError: no module's name begins with it.
    """
    if not finetune.train_from:
        return ()
    for index, name in enumerate(model.modules):
        if name == finetune.train_from or name.startswith(f"{finetune.train_from}_"):
            return model.modules[:index]
    stages = dict.fromkeys(re.sub(r"^(blocks_\d+)_.*", r"\1", name) for name in model.modules)
    raise ConfigError(
        f"finetune.train_from is {finetune.train_from!r}; allowed are {', '.join(stages)}, one of "
        "their blocks, or '' for all."
    )


def image_shape(config: Config) -> tuple[int, int, int]:
    """(H, W, C) of the network's input."""
    return (config.data.image_size, config.data.image_size, config.data.channels)


def layer_costs(config: Config, num_classes: int) -> list[cost.LayerCost]:
    """Costs of every layer: from the block table for MobileNetV2, from a trace for others."""
    model = config.model
    if model.name != "mobilenet_v2":
        return tracing.layer_costs(build_model(config, num_classes), image_shape(config))
    return cost.layer_costs(plan(model), image_shape(config), num_classes, model.kernel_size)


def peaks(config: Config, num_classes: int) -> dict[str, cost.Peak]:
    """Peak activation memory of one image under each definition that covers the network.

    Empty if there is none: the definitions only cover MobileNetV2's blocks with shortcuts between
    bottlenecks.
    """
    if config.model.name != "mobilenet_v2" or config.model.shortcut == "expansion":
        return {}
    definitions: tuple[cost.PeakDefinition, ...] = (
        "per_op",
        "per_op_inplace_depthwise",
        "block_as_one_op",
    )
    return {
        name: cost.peak_activation(
            plan(config.model),
            image_shape(config),
            num_classes,
            name,
            kernel_size=config.model.kernel_size,
        )
        for name in definitions
    }
