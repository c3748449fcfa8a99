"""Weights of other projects' MobileNetV2s, converted to this project's variables and settings.

`weights` defines the result, and `fit` determines the network from the shapes of the tensors. Each
family of files has a module: `keras` (and TF.js), `pytorch` (torchvision, timm, Hugging Face),
`tflite`, and `native` for the files that this project writes.
"""

import hashlib
from pathlib import Path

from mobilenet.models.pretrained import keras, native, pytorch, tflite
from mobilenet.models.pretrained.weights import (
    MOST_BYTES,
    PretrainedError,
    Weights,
    check_description,
)

FORMATS = ("keras", "tfjs", "torchvision", "timm", "huggingface", "tflite", "safetensors")


def read(file_format: str, path: Path) -> Weights:
    """Reads a MobileNetV2's weights; no code of the file runs.

    Args:
      file_format: one of FORMATS: "keras" (`.weights.h5`, `.h5`, `.keras`), "tfjs" (`model.json`
        next to its shards), "torchvision", "timm" and "huggingface" (`.pth`, `.bin`,
        `.safetensors`), "tflite", "safetensors" (written by this project).
      path: of the file.

    Returns:
      The variables, with the settings and the preprocessing that belong to them.

    Raises:
      PretrainedError: the file does not exist, is damaged, or holds another network. The message
        says which tensors are missing, unexpected or of the wrong shape.
    """
    if file_format not in FORMATS:
        raise PretrainedError(
            f"The format {file_format!r} is not known; allowed are {', '.join(FORMATS)}."
        )
    try:
        if not path.is_file():
            hint = " is a directory; give the file in it" if path.is_dir() else " does not exist"
            raise PretrainedError(f"{path}{hint}.")
        if path.stat().st_size > MOST_BYTES:
            raise PretrainedError(
                f"{path.name} has {path.stat().st_size:,} bytes, more than any MobileNetV2's file."
            )
        source = f"{file_format} {path.name}, sha256 {_digest(file_format, path)}"
        weights = _read(file_format, path, source)
    except OSError as error:
        raise PretrainedError(f"{path} cannot be read: {error.strerror or error}.") from error
    check_description(weights)
    return weights


def _read(file_format: str, path: Path, source: str) -> Weights:
    if file_format == "keras":
        return keras.read_file(path, source)
    if file_format == "tfjs":
        return keras.read_tfjs(path, source)
    if file_format == "tflite":
        return tflite.read(path, source)
    if file_format == "safetensors":
        return native.read(path, source)
    return pytorch.read(path, file_format, source)


def _digest(file_format: str, path: Path) -> str:
    """sha256 of the file, or of a TF.js model's shards in order."""
    paths = keras.shard_paths(path) if file_format == "tfjs" else [path]
    digest = hashlib.sha256()
    for part in paths or [path]:
        if part.is_file():
            with open(part, "rb") as file:
                while data := file.read(1 << 20):
                    digest.update(data)
    return digest.hexdigest()
