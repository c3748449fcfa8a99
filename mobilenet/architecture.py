"""From `config.model` to the network and its analytic costs."""

import jax.numpy as jnp

from mobilenet.config import Config
from mobilenet.models import cost
from mobilenet.models.mobilenet_v2 import BlockSpec, MobileNetV2, Plan, plan_blocks
from mobilenet.train import steps


def plan(model: Config) -> Plan:
    """The network's channel counts, strides and shortcuts from `config.model`."""
    return plan_blocks(
        blocks=tuple(BlockSpec(*row) for row in model.blocks),
        width_multiplier=model.width_multiplier,
        expansion_ratio=model.expansion_ratio,
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
    )


def build_model(config: Config, num_classes: int, *, devices: int | None = None) -> MobileNetV2:
    """The network of a configuration.

    Args:
      config: complete configuration.
      num_classes: of the classifier; 0 for the feature extractor.
      devices: over which BN statistics may be shared in training; None for use on one device, as in
        a notebook, where no mapped axis exists.
    """
    model = config.model
    axis, groups = None, None
    if devices is not None:
        axis, groups = steps.bn_groups(devices, model.bn_statistics, model.bn_group_size)
    return MobileNetV2(
        plan=plan(model),
        num_classes=num_classes,
        activation=model.activation,
        bottleneck_activation=model.bottleneck_activation,
        kernel_size=model.kernel_size,
        se_gate=model.se_gate,
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


def image_shape(config: Config) -> tuple[int, int, int]:
    """(H, W, C) that the network sees."""
    return (config.data.image_size, config.data.image_size, config.data.channels)


def layer_costs(config: Config, num_classes: int) -> list[cost.LayerCost]:
    """Costs of every layer, from the block table."""
    model = config.model
    return cost.layer_costs(plan(model), image_shape(config), num_classes, model.kernel_size)


def peaks(config: Config, num_classes: int) -> dict[str, cost.Peak]:
    """Peak activation memory of one image under each definition that covers the network."""
    if config.model.shortcut == "expansion":
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
