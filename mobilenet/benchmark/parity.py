"""Compares logits with other frameworks, for the same random weights and the same images.

    python -m mobilenet.benchmark.parity --out=experiments/results/parity.csv

Each peer's own MobileNetV2 is built, and all its weights and BN statistics are drawn at random
(away from 0 and 1, which would hide faults). It is saved in the peer's own format, and
`mobilenet.models.pretrained` reads that file. Peers that are not installed (`pip install -e
'.[parity]'`) are left out, and the output names them.
"""

# The peers are extras; types are not checked against them.
# pyright: reportMissingImports=false

import argparse
import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mobilenet import architecture, runtime
from mobilenet import config as config_lib
from mobilenet.models import pretrained
from mobilenet.models.pretrained.weights import Weights
from mobilenet.report import rows as csv_rows
from mobilenet.train import records

WIDTHS = (0.35, 0.75, 1.0, 1.4)
RESOLUTIONS = (96, 97, 224)
# Packages of each peer; the first one is the peer's own.
PACKAGES: dict[str, tuple[str, ...]] = {
    "torchvision": ("torchvision", "torch"),
    "timm": ("timm", "torchvision", "torch"),
    "huggingface": ("transformers", "torchvision", "torch"),
    "keras": ("keras", "tensorflow-cpu"),
}
_MODULES: dict[str, str] = {"tensorflow-cpu": "tensorflow"}

# [B, H, W, 3] float32 -> [B, K] float32.
Forward = Callable[[np.ndarray], np.ndarray]


def installed(framework: str) -> bool:
    """Whether a peer can be imported."""
    modules = [_MODULES.get(package, package) for package in PACKAGES[framework]]
    return all(importlib.util.find_spec(module) is not None for module in modules)


def draw(name: str, shape: tuple[int, ...], fan_in: int, rng: np.random.Generator) -> np.ndarray:
    """Random values for a tensor, float32 [shape], such that logits have a magnitude of about 1.

    Args:
      name: kind of the tensor: kernel, scale, mean, var or bias.
      shape: of the tensor.
      fan_in: inputs of one output of a kernel.
      rng: the generator.
    """
    if name == "var":
        values = rng.uniform(0.5, 2.0, shape)
    elif name == "scale":
        values = rng.uniform(0.5, 1.5, shape)
    elif name == "mean":
        values = rng.normal(0, 0.3, shape)
    elif name == "bias":
        values = rng.normal(0, 0.2, shape)
    else:
        values = rng.normal(0, np.sqrt(2 / fan_in), shape)
    return values.astype(np.float32)


def _randomize_torch(module: Any, rng: np.random.Generator) -> Forward:
    import torch

    kinds = {"running_var": "var", "running_mean": "mean", "bias": "bias"}
    tensors = module.state_dict()
    for name, tensor in tensors.items():
        last = name.rsplit(".", 1)[-1]
        if last == "num_batches_tracked":
            continue
        kind = kinds.get(last, "kernel" if tensor.ndim > 1 else "scale")
        fan_in = int(np.prod(tensor.shape[1:]))
        tensors[name] = torch.from_numpy(draw(kind, tuple(tensor.shape), fan_in, rng))
    module.load_state_dict(tensors)
    module.eval()

    def forward(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            outputs = module(torch.from_numpy(images).permute(0, 3, 1, 2))
        return getattr(outputs, "logits", outputs).numpy()

    return forward


@functools.cache
def import_torchvision() -> Any:
    """torchvision, even if it is built for CUDA and PyTorch for CPUs.

    Then torchvision's compiled operations cannot be loaded. No classifier needs them, but the
    import fails because torchvision describes two of them without a check. So they are declared
    first.
    """
    import torch

    with contextlib.suppress(RuntimeError):
        return importlib.import_module("torchvision")
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torchvision: Any = importlib.import_module("torchvision")
    torchvision.declared = library  # the declarations end when this object is deleted
    return torchvision


def make_torchvision(width: float, folder: Path, rng: np.random.Generator) -> tuple[Path, Forward]:
    """A random torchvision network: its file, and its logits."""
    import torch

    module = import_torchvision().models.mobilenet_v2(width_mult=width)
    forward = _randomize_torch(module, rng)
    path = folder / "model.pth"
    torch.save(module.state_dict(), path)
    return path, forward


def make_timm(name: str, folder: Path, rng: np.random.Generator) -> tuple[Path, Forward]:
    """A random timm network with that name: its file, and its logits."""
    import_torchvision()  # timm imports it
    import timm
    from safetensors.torch import save_model

    module = timm.create_model(name, pretrained=False)
    forward = _randomize_torch(module, rng)
    path = folder / "model.safetensors"
    save_model(module, str(path))
    return path, forward


def make_huggingface(width: float, folder: Path, rng: np.random.Generator) -> tuple[Path, Forward]:
    """A random Hugging Face network, TensorFlow's padding and 1,001 classes: file and logits."""
    import_torchvision()  # transformers imports it if it is installed
    import transformers

    options: dict[str, Any] = {"depth_multiplier": width, "num_labels": 1001}
    config = transformers.MobileNetV2Config(**options)
    module = transformers.MobileNetV2ForImageClassification(config)
    forward = _randomize_torch(module, rng)
    module.save_pretrained(folder)
    return folder / "model.safetensors", forward


def make_keras_model(
    width: float, resolution: int | None, rng: np.random.Generator
) -> tuple[Any, Forward]:
    """A random network of Keras Applications, 1,001 classes: the model, and its logits.

    Args:
      width: multiplier.
      resolution: in pixels, which decides the padding. None builds the model for any size; Keras
        only supports this without a classifier, so features [B, F] replace the logits.
      rng: the generator.
    """
    import keras

    untrained: Any = None  # Keras's annotation knows the default alone
    model = keras.applications.MobileNetV2(
        alpha=width,
        input_shape=(resolution, resolution, 3),
        weights=untrained,
        **(
            {"classes": 1001, "classifier_activation": None}
            if resolution
            else {"include_top": False, "pooling": "avg"}
        ),
    )
    kinds = {"gamma": "scale", "moving_mean": "mean", "moving_variance": "var"}
    for layer in model.layers:
        for variable in layer.weights:
            kind = kinds.get(variable.name, "bias" if len(variable.shape) == 1 else "kernel")
            shape = tuple(variable.shape)
            depthwise = "depthwise" in layer.name
            fan_in = int(np.prod(shape[:2] if depthwise else shape[:-1]))
            variable.assign(draw(kind, shape, fan_in, rng))
    return model, lambda images: np.asarray(model(images, training=False))


def make_keras(
    width: float, resolution: int | None, folder: Path, rng: np.random.Generator
) -> tuple[Path, Forward]:
    """As `make_keras_model`: its `.weights.h5` file, and its logits."""
    model, forward = make_keras_model(width, resolution, rng)
    path = folder / "model.weights.h5"
    model.save_weights(path)
    return path, forward


# (width, resolution, folder, rng) -> the file and the logits. PyTorch's have no fixed resolution.
PEERS: dict[str, Callable[..., tuple[Path, Forward]]] = {
    "torchvision": lambda width, _, folder, rng: make_torchvision(width, folder, rng),
    "timm": lambda width, _, folder, rng: make_timm(
        f"mobilenetv2_{round(100 * width):03d}", folder, rng
    ),
    "huggingface": lambda width, _, folder, rng: make_huggingface(width, folder, rng),
    "keras": make_keras,
}


def logits(weights: Weights, images: np.ndarray) -> np.ndarray:
    """This project's logits: images [B, H, W, 3], already normalised, to float32 [B, K]."""
    config = config_lib.get_config()
    config_lib.update(config, weights.settings)
    model: Any = architecture.build_model(config, config.model.num_classes)
    variables = {"params": weights.params, "batch_stats": weights.batch_stats}
    return np.asarray(_compiled(model)(variables, jnp.asarray(images)))


@functools.lru_cache(maxsize=4)
def _compiled(model: Any) -> Any:
    # torchvision's and timm's networks are equal here, and so are Hugging Face's and Keras'.
    return jax.jit(model.apply)


def measure(
    framework: str, width: float, resolution: int, *, images: int = 2, seed: int = 0
) -> dict[str, Any]:
    """Compares one peer with this project.

    Args:
      framework: one of PEERS.
      width: multiplier.
      resolution: side of the images, in pixels.
      images: number of images, of normal noise.
      seed: of weights and images.

    Returns:
      `framework`, `width`, `resolution`, `max_abs_difference` of the logits, `logits_scale` (the
      largest magnitude of the peer's logits).
    """
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((images, resolution, resolution, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path, forward = PEERS[framework](width, resolution, Path(folder), rng)
        weights = pretrained.read(framework, path)
        theirs = forward(noise)
    ours = logits(weights, noise)
    if ours.shape != theirs.shape:
        raise ValueError(f"{framework} gives logits {theirs.shape}, this project {ours.shape}.")
    return {
        "framework": framework,
        "width": width,
        "resolution": resolution,
        "max_abs_difference": float(np.abs(ours - theirs).max()),
        "logits_scale": float(np.abs(theirs).max()),
    }


def versions(framework: str) -> str:
    """Versions of a peer's packages and of JAX, as stated in a row."""
    names = (*PACKAGES[framework], "jax")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def rows(resolutions: tuple[int, ...] = RESOLUTIONS) -> Iterator[dict[str, Any]]:
    """The parity table's rows, one by one, for every peer that is installed."""
    commit = records.commit()
    peers = [framework for framework in PEERS if installed(framework)]
    for framework in PEERS:
        if framework not in peers:
            print(f"{framework} is not installed and left out", file=sys.stderr)
    for width, resolution in itertools.product(WIDTHS, resolutions):
        for framework in peers:
            row = measure(framework, width, resolution)
            yield {**row, "versions": versions(framework), "commit": commit}


def main(argv: list[str] | None = None) -> int:
    """Writes the table and prints it; returns 1 if a difference is above 1e-4."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write")
    found: list[dict[str, Any]] = []
    runtime.prepare_compiler()
    out = parser.parse_args(argv).out
    for row in rows():
        found.append(row)
        print(
            f"{row['framework']:<12} {row['width']:<5} {row['resolution']:<4} "
            f"{row['max_abs_difference']:.1e} of {row['logits_scale']:.1f}",
            flush=True,
        )
    # Sorted by peer, whatever the order of measurements.
    found.sort(key=lambda row: (tuple(PEERS).index(row["framework"]), row["width"]))
    out.parent.mkdir(parents=True, exist_ok=True)
    csv_rows.write(out, tuple(found[0]) if found else (), found)
    return int(any(row["max_abs_difference"] > 1e-4 for row in found))


if __name__ == "__main__":
    sys.exit(main())
