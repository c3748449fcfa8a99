"""Data sets for the tests: digits written once a session, real data where it is at hand."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

_SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mobilenet.data import datasets

    folder = tmp_path_factory.mktemp("digits")
    datasets.prepare("digits", folder)
    return folder


@pytest.fixture(scope="session")
def cifar_dir() -> Path:
    folder = Path(os.environ.get("MOBILENET_TEST_DATA") or _SHARED / "tfds")
    if not (folder / "cifar10").is_dir():
        pytest.skip("CIFAR-10 is not at hand; set MOBILENET_TEST_DATA to a TFDS folder with it")
    return folder


@pytest.fixture(scope="session")
def flowers_dir() -> Path:
    folder = _SHARED / "images" / "tf_flowers_small"
    if not folder.is_dir():
        pytest.skip("the flowers folder is not at hand")
    return folder


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Encodes an array or a Pillow image to the bytes of a file."""

    def to_bytes(image: np.ndarray | Image.Image, file_format: str = "PNG", **options) -> bytes:
        if isinstance(image, np.ndarray):
            squeezed = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
            image = Image.fromarray(squeezed)
        file = io.BytesIO()
        image.save(file, file_format, **options)
        return file.getvalue()

    return to_bytes


@pytest.fixture
def picture_folder(tmp_path: Path, encode: Callable[..., bytes]) -> Callable[..., Path]:
    """Writes classes of small PNGs whose grey level is 10 * class + number of the file."""

    def write(root: str, classes: dict[str, int], suffix: str = "png", size: int = 6) -> Path:
        folder = tmp_path / root
        for label, (name, count) in enumerate(sorted(classes.items())):
            (folder / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((size, size, 3), 10 * label + i, np.uint8)
                (folder / name / f"{i:03d}.{suffix}").write_bytes(encode(pixels))
        return folder

    return write
