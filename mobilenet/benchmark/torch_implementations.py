"""The PyTorch implementations of a benchmark: the same work, written as PyTorch users write it.

The options that PyTorch recommends are set: channels-last memory, `cudnn.benchmark` and autocast on
a GPU, `inference_mode`, `zero_grad(set_to_none=True)`, the optimiser's fused or foreach form (its
default).
"""

# PyTorch is an extra; types are not checked against it.
# pyright: reportMissingImports=false

import os
from typing import Any

import torch
from torch.nn import functional

from mobilenet import architecture, build
from mobilenet.benchmark import implementations, torch_peer
from mobilenet.benchmark.implementations import Implementation, Spec
from mobilenet.config import Config


def prepare(config: Config, spec: Spec) -> Implementation:
    """Builds a PyTorch implementation; see `implementations.prepare`."""
    if config.optimizer.name != "sgd":
        raise ValueError(
            f"optimizer.name is {config.optimizer.name!r}; PyTorch is only measured with sgd."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(os.cpu_count() or 1)
    # Any: PyTorch's stubs have no memory format of modules.
    network: Any = torch_peer.MobileNetV2(
        architecture.plan(config.model), config.model, config.data.channels, spec.num_classes
    )
    torch_peer.load(network, build.init_variables(config, spec.num_classes))
    network = network.to(device, memory_format=torch.channels_last)
    half = config.model.dtype == "bfloat16"
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=half)
    make = {"train": _train, "evaluate": _evaluate, "block": _block}[spec.work]
    return make(config, spec, network, device, autocast)


def device_peak() -> int:
    """Most bytes in use on the GPU so far; 0 without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def _compiled(spec: Spec, module: Any) -> Any:
    return torch.compile(module) if spec.implementation == "torch_compile" else module


def _wait(result: Any) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _normalise(config: Config, images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, C] to float [B, C, H, W] whose memory is already channels last."""
    mean, std = (
        torch.tensor(v, device=images.device) for v in implementations.normalization(config)
    )
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def _train(config: Config, spec: Spec, network: Any, device: Any, autocast: Any) -> Implementation:
    network.train()
    settings = config.optimizer
    optimizer = torch.optim.SGD(
        torch_peer.parameter_groups(network, settings.weight_decay),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
    )
    batch = implementations.make_batch(config, spec)
    smoothing = config.train.label_smoothing

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with autocast:
            logits = network(_normalise(config, images))
        return functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)

    forward = _compiled(spec, loss_of)

    def step() -> torch.Tensor:
        images = torch.from_numpy(batch["image"]).to(device)
        labels = torch.from_numpy(batch["label"]).long().to(device)
        optimizer.zero_grad(set_to_none=True)
        loss = forward(images, labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Implementation(step, _wait, float, dict)


def _evaluate(
    config: Config, spec: Spec, network: Any, device: Any, autocast: Any
) -> Implementation:
    network.eval()
    images = implementations.make_batch(config, spec)["image"]

    def logits_of(images: torch.Tensor) -> torch.Tensor:
        with autocast:
            return network(_normalise(config, images))

    forward = _compiled(spec, logits_of)

    @torch.inference_mode()
    def step() -> torch.Tensor:
        return forward(torch.from_numpy(images).to(device))

    return Implementation(step, _wait, lambda logits: float(logits.float().square().mean()), dict)


def _block(config: Config, spec: Spec, network: Any, device: Any, autocast: Any) -> Implementation:
    block = network.get_submodule(spec.block).train()
    inputs = (
        torch.from_numpy(implementations.block_input(config, spec)).permute(0, 3, 1, 2).to(device)
    )
    inputs.requires_grad_(spec.block != "stem")  # the gradient of the image is not needed

    def loss_of(x: torch.Tensor) -> torch.Tensor:
        with autocast:
            y = block(x)
        return y.float().square().mean()

    forward = _compiled(spec, loss_of)

    def step() -> torch.Tensor:
        block.zero_grad(set_to_none=True)
        inputs.grad = None
        loss = forward(inputs)
        loss.backward()
        return loss.detach()

    return Implementation(step, _wait, float, dict)
