"""The host's share of training: JPEG files to random resized crops, on one thread."""

# tensorflow is an extra; types are not checked against it.
# pyright: reportMissingImports=false, reportMissingModuleSource=false

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobilenet.benchmark.implementations import Implementation, Spec
from mobilenet.config import Config
from mobilenet.data import images


def prepare(config: Config, spec: Spec) -> Implementation:
    """An implementation that turns `spec.batch_size` files per step into uint8 [B, S, S, 3].

    Raises:
      ValueError: `data.data_dir` holds no JPEG files.
      ImportError: TensorFlow is not installed.
    """
    folder = Path(config.data.data_dir)
    paths = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg")]
    if not paths or not config.data.data_dir:
        raise ValueError(
            f"data.data_dir is {config.data.data_dir!r}, which holds no JPEG files; give a folder "
            "of photographs with --config.data.data_dir=FOLDER."
        )
    make = {"ours": _ours, "pillow": _pillow, "tf_data": _tf_data}[spec.implementation]
    step = make(paths, config.data.image_size, spec.batch_size)
    # Crops are random, so only the number of images and their size can be compared.
    return Implementation(
        step, lambda batch: batch, lambda batch: float(np.asarray(batch).size), dict
    )


def _batches(
    paths: list[Path], batch_size: int, load: Callable[[bytes], np.ndarray]
) -> Callable[[], Any]:
    files = itertools.cycle(paths)

    def step() -> np.ndarray:
        chosen = itertools.islice(files, batch_size)
        return np.stack([load(path.read_bytes()) for path in chosen])

    return step


def _ours(paths: list[Path], size: int, batch_size: int) -> Callable[[], Any]:
    rng = np.random.default_rng(0)
    return _batches(paths, batch_size, lambda b: images.load_train_view(b, size=size, rng=rng))


def _pillow(paths: list[Path], size: int, batch_size: int) -> Callable[[], Any]:
    """Decodes the whole image, then crops and resizes, as a typical data set of PyTorch users."""
    rng = np.random.default_rng(0)

    def load(encoded: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
        box = images.random_box(*image.size, rng, (0.08, 1.0), (3 / 4, 4 / 3))
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))

    return _batches(paths, batch_size, load)


def _tf_data(paths: list[Path], size: int, batch_size: int) -> Callable[[], Any]:
    """As in TensorFlow's ImageNet examples: only the blocks of the crop are decoded."""
    import tensorflow as tf

    def load(path: Any) -> Any:
        encoded = tf.io.read_file(path)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(encoded),
            tf.zeros([1, 0, 4], tf.float32),
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], extent[:2]], 0)
        image = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
        image = tf.image.resize(image, (size, size))
        return tf.cast(tf.round(image), tf.uint8)

    dataset = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    dataset = dataset.repeat().map(load).batch(batch_size)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    iterator = dataset.with_options(options).as_numpy_iterator()
    return lambda: next(iterator)
