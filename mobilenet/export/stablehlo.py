"""StableHLO archives: a network as `jax.export` serialises it, with its weights, for any batch.

JAX loads an archive without this project's code. Newer versions of JAX read older archives, but
only for a limited time, so keep the run directory too.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from mobilenet.export import operations
from mobilenet.export.operations import ExportError

PLATFORMS = ("cpu", "cuda", "tpu")


def require() -> None:
    """Raises ExportError unless the package that JAX needs for archives is installed."""
    operations.require("StableHLO archives", flatbuffers="FlatBuffers")


def write(path: Path, apply: Callable[[Any], Any], image_shape: tuple[int, int, int]) -> None:
    """Writes an archive of a function of normalised images, float32 [b, H, W, C] to [b, K].

    Args:
      path: of the .stablehlo file.
      apply: of a float or a quantised network with its variables, in the form "grouped": the form
        is fixed in the archive.
      image_shape: of an image.

    Raises:
      ExportError: FlatBuffers is not installed.
    """
    require()
    (batch,) = export.symbolic_shape("b")
    image = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
    exported = export.export(jax.jit(apply), platforms=PLATFORMS)(image)
    path.write_bytes(bytes(exported.serialize()))


def read(path: Path) -> Callable[[Any], jax.Array]:
    """The function of an archive: float32 [b, H, W, C] to [b, K], on any of PLATFORMS.

    Raises:
      ExportError: the file is not an archive, or its version of JAX is too different; or
        FlatBuffers is not installed.
    """
    require()
    try:
        return export.deserialize(bytearray(path.read_bytes())).call
    except Exception as error:  # flatbuffers raises many types for a damaged file
        raise ExportError(f"{path} is not an archive that this JAX can load: {error}") from error
