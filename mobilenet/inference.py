"""Using a run: its checkpoints, its accuracy on a split, its answers for pictures."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from mobilenet import architecture, build
from mobilenet.config import Config
from mobilenet.data import images
from mobilenet.train import loop
from mobilenet.train.checkpoints import read_checkpoint as read_checkpoint
from mobilenet.train.metrics import Evaluation


def evaluate(config: Config, data: build.Data, variables: Any, split: str) -> Evaluation:
    """Evaluates variables on every example of a split, on all devices."""
    num_classes = build.resolve_classes(config, len(data.class_names))
    model = architecture.build_model(config, num_classes)
    step = build.build_eval_step(model, data.mean, data.std)
    return loop.evaluate(step, data.eval_batches, variables, split, num_classes, data.splits)


class Predictor:
    """Classifies pictures as the run's evaluation sees them; needs no data set.

    Attributes:
      class_names: of the classifier's outputs.
    """

    def __init__(self, config: Config, variables: Any, workdir: Path) -> None:
        stored = build.require_stored(workdir)
        if not stored["class_names"]:
            raise build.no_classifier(workdir)
        self._config = config
        num_classes = build.resolve_classes(config, len(stored["class_names"]))
        names = list(stored["class_names"])
        self.class_names = names + [f"class {i}" for i in range(len(names), num_classes)]
        model = architecture.build_model(config, num_classes)
        forward = build.build_forward(model, tuple(stored["mean"]), tuple(stored["std"]))
        self._classify = jax.jit(lambda pictures: jax.nn.softmax(forward(variables, pictures)))

    def load(self, encoded: bytes) -> np.ndarray:
        """A picture file's bytes as uint8 [S, S, C]; UnreadableImage if it is not a picture."""
        data = self._config.data
        return images.load_eval_view_or_same(
            encoded,
            size=data.image_size,
            channels=data.channels,
            crop_fraction=data.crop_fraction,
        )

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, C] to probabilities float32 [B, K]."""
        return np.asarray(self._classify(pictures))
