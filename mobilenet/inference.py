"""Using a run: its checkpoints, its accuracy on a split, its answers for images."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mobilenet import architecture, build
from mobilenet.config import Config
from mobilenet.data import images, pipeline
from mobilenet.data.batches import Prefetcher
from mobilenet.data.folders import FolderSource
from mobilenet.train import loop, steps
from mobilenet.train.checkpoints import read_checkpoint as read_checkpoint
from mobilenet.train.metrics import Evaluation


def evaluate(config: Config, data: build.Data, variables: Any, split: str) -> Evaluation:
    """Evaluates variables on every example of a split, on all devices."""
    num_classes = build.resolve_classes(config, len(data.class_names))
    model = architecture.build_model(config, num_classes)
    step = build.build_eval_step(model, data.mean, data.std)
    return loop.evaluate(step, data.eval_batches, variables, split, num_classes, data.splits)


class Prediction(NamedTuple):
    """What a file is taken for.

    Attributes:
      path: of the file.
      probabilities: float32 [K]; None if it cannot be read.
      error: why it cannot be read, with its path; "" if it can.
    """

    path: str
    probabilities: np.ndarray | None
    error: str


class Predictor:
    """Classifies images as the run's evaluation sees them; needs no data set.

    Attributes:
      class_names: of the classifier's outputs.
    """

    def __init__(self, config: Config, variables: Any, workdir: Path) -> None:
        stored = build.require_stored(workdir)
        if not stored["class_names"]:
            raise build.no_classifier(workdir)
        self._config = config
        self._variables = variables
        self._statistics = tuple(stored["mean"]), tuple(stored["std"])
        num_classes = build.resolve_classes(config, len(stored["class_names"]))
        names = list(stored["class_names"])
        self.class_names = names + [f"class {i}" for i in range(len(names), num_classes)]
        self._model = architecture.build_model(config, num_classes)

    def load(self, encoded: bytes) -> np.ndarray:
        """An image file's bytes as uint8 [S, S, C]; UnreadableImage if it is not an image."""
        data = self._config.data
        return images.load_eval_view_or_same(
            encoded,
            size=data.image_size,
            channels=data.channels,
            crop_fraction=data.crop_fraction,
        )

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, C] to probabilities float32 [B, K]."""
        return np.asarray(self._classify(pixels))

    @functools.cached_property
    def _classify(self) -> Any:
        forward = build.build_forward(self._model, *self._statistics)
        return jax.jit(lambda pixels: jax.nn.softmax(forward(self._variables, pixels)))

    def files(self, paths: Sequence[str]) -> Iterator[Prediction]:
        """Classifies image files, in their order, by the pipeline and the step of `evaluate`.

        Files are read and decoded in threads, or in `data.num_workers` processes, while the devices
        compute; in memory are a few batches, however many files there are.

        Args:
          paths: of the files.

        Yields:
          One `Prediction` per path, also for files that cannot be read.
        """
        data = self._config.data
        batches = pipeline.eval_batches(
            FolderSource("", tuple(paths), (0,) * len(paths)),
            global_batch_size=self._batch_size(len(paths)),
            image_size=data.image_size,
            channels=data.channels,
            crop_fraction=data.crop_fraction,
            on_error="skip",
            num_workers=data.num_workers,
        )
        step = build.build_eval_step(self._model, *self._statistics)
        variables = steps.place(self._variables)
        with contextlib.closing(Prefetcher(batches, data.prefetch_batches)) as prefetched:
            for batch in prefetched:
                rows = step(variables, steps.shard(batch))
                rows = jax.device_get({key: rows[key] for key in ("index", "mask", "logits")})
                for at in np.flatnonzero(rows["index"] >= 0):
                    index = int(rows["index"][at])
                    if rows["mask"][at]:
                        yield Prediction(paths[index], _softmax(rows["logits"][at]), "")
                    else:
                        yield Prediction(paths[index], None, batches.unreadable[index])

    def _batch_size(self, count: int) -> int:
        """That of evaluation, whose program training has compiled; a smaller one for few files."""
        devices = jax.device_count()
        most = -(-self._config.eval.batch_size // devices) * devices
        enough = 1 << max(0, count - 1).bit_length()  # a power of two, so that programs are few
        return min(most, -(-enough // devices) * devices)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()
