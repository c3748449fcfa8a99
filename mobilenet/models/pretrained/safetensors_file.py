"""Reads and writes `.safetensors` files with the format's own library."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet.models.pretrained.weights import PretrainedError


def _library() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise PretrainedError(
            "Reading and writing .safetensors needs a package that is not installed; "
            "`pip install -e '.[convert]'` in the checkout brings it."
        ) from error
    return safetensors


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a file.

    Returns:
      (name -> array of the stored type, key -> text).

    Raises:
      PretrainedError: the file is truncated or of another format, or NumPy does not have its type.
    """
    library = _library()
    try:
        with library.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            return arrays, dict(file.metadata() or {})
    except (library.SafetensorError, TypeError) as error:
        raise PretrainedError(
            f"{path.name} is truncated, damaged or not a .safetensors file: {error}."
        ) from error


def dumps(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a file.

    Args:
      arrays: name -> array.
      metadata: key -> text.
    """
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return _library().numpy.save(contiguous, dict(metadata))
