"""The same network in PyTorch, from the same plan and with the same weights, for the benchmark.

It is written as PyTorch users write it: `nn` modules, channels-last memory, in-place activations.
PyTorch is an extra (`pip install -e '.[benchmark]'`) that only this module and the benchmark's
workers import.
"""

# PyTorch is an extra; types are not checked against it.
# pyright: reportMissingImports=false

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from mobilenet.models.mobilenet_v2 import BlockPlan, Plan

ACTIVATIONS: dict[str, Any] = {
    "identity": nn.Identity,
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "hard_swish": lambda: nn.Hardswish(inplace=True),
}


class ConvBNAct(nn.Module):
    """Convolution, batch normalisation, activation on [B, C, H, W]."""

    def __init__(
        self,
        inputs: int,
        features: int,
        *,
        kernel: int = 1,
        strides: int = 1,
        groups: int = 1,
        activation: str,
        momentum: float,
        epsilon: float,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, features, kernel, strides, kernel // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(features, eps=epsilon, momentum=1 - momentum)
        self.act = ACTIVATIONS[activation]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)))


class SqueezeExcite(nn.Module):
    """Channel gating from the spatial mean, with a sigmoid gate."""

    def __init__(self, features: int, squeeze: int, gate: str) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Linear(features, squeeze), nn.Linear(squeeze, features)
        self.gate = nn.Sigmoid() if gate == "sigmoid" else nn.Hardsigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.reduce(x.mean((2, 3))))
        return x * self.gate(self.expand(hidden))[:, :, None, None]


class InvertedResidual(nn.Module):
    """Expand, depthwise, project, with the paper's shortcut."""

    def __init__(self, plan: BlockPlan, model: Any) -> None:
        super().__init__()
        if plan.shortcut not in ("identity", "none"):
            raise ValueError(f"The PyTorch peer has no shortcut {plan.shortcut!r}.")
        settings = {"momentum": model.bn_momentum, "epsilon": model.bn_epsilon}
        wide = plan.expanded_features
        if plan.expands:
            self.expand = ConvBNAct(plan.in_features, wide, activation=model.activation, **settings)
        self.depthwise = ConvBNAct(
            wide,
            wide,
            kernel=model.kernel_size,
            strides=plan.strides,
            groups=wide,
            activation=model.activation,
            **settings,
        )
        if plan.squeeze_features:
            self.se = SqueezeExcite(wide, plan.squeeze_features, model.se_gate)
        self.project = ConvBNAct(
            wide, plan.features, activation=model.bottleneck_activation, **settings
        )
        self.plan = plan

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.expand(x) if self.plan.expands else x
        y = self.depthwise(y)
        if self.plan.squeeze_features:
            y = self.se(y)
        y = self.project(y)
        return y + x if self.plan.shortcut == "identity" else y


class MobileNetV2(nn.Module):
    """The planned network on [B, C, H, W] float images, to logits [B, num_classes].

    Args:
      plan: from `mobilenet.models.mobilenet_v2.plan_blocks`.
      model: `config.model`.
      channels: of the images.
      num_classes: of the classifier.

    Raises:
      ValueError: the peer does not support an option (asymmetric padding, other shortcuts).
    """

    def __init__(self, plan: Plan, model: Any, channels: int, num_classes: int) -> None:
        super().__init__()
        if model.padding != "SYMMETRIC" or not plan.head_features:
            raise ValueError(
                "The PyTorch peer pads symmetrically and has a head; set model.padding to "
                "'SYMMETRIC' and model.head_features above 0, or leave PyTorch out."
            )
        settings = {
            "momentum": model.bn_momentum,
            "epsilon": model.bn_epsilon,
            "activation": model.activation,
        }
        stem = plan.stem_features
        self.stem = ConvBNAct(channels, stem, kernel=3, strides=plan.stem_strides, **settings)
        self.names = [block.name for block in plan.blocks]
        for block in plan.blocks:
            self.add_module(block.name, InvertedResidual(block, model))
        self.head = ConvBNAct(plan.blocks[-1].features, plan.head_features, **settings)
        self.dropout = nn.Dropout(model.dropout_rate)
        self.classifier = nn.Linear(plan.head_features, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for name in self.names:
            x = self.get_submodule(name)(x)
        x = self.head(x).mean((2, 3))
        return self.classifier(self.dropout(x))


def load(module: nn.Module, variables: Mapping[str, Any]) -> None:
    """Copies Flax variables (`params`, `batch_stats`) into a module with the same names.

    Raises:
      RuntimeError: tensors are missing, unexpected, or of another shape.
    """
    renamed = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    tensors: dict[str, torch.Tensor] = {}

    def visit(tree: Mapping[str, Any], prefix: str) -> None:
        for name, value in tree.items():
            if isinstance(value, Mapping):
                visit(value, f"{prefix}{name}.")
                continue
            array = np.asarray(value)
            if name == "kernel":
                array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
            tensors[prefix + renamed.get(name, name)] = torch.from_numpy(array.copy())

    for collection in variables.values():
        visit(collection, "")
    for name, value in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = value
    module.load_state_dict(tensors)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Kernels decay; biases and BN's scale and bias do not, as in `mobilenet.train.optim`."""
    decays = [p for p in module.parameters() if p.ndim > 1]
    rest = [p for p in module.parameters() if p.ndim <= 1]
    return [
        {"params": decays, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
