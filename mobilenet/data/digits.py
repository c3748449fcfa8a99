"""The embedded data set: scikit-learn's handwritten digits as a TFDS builder.

1,797 images of 8 x 8 pixels in ten classes (E. Alpaydin and C. Kaynak, UCI "Optical Recognition of
Handwritten Digits", test part, 1998). scikit-learn contains them, so nothing is downloaded.
Importing this module imports tensorflow_datasets, so `mobilenet.data.datasets` imports it late.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

TEST_EVERY = 5


class Digits(tfds.core.GeneratorBasedBuilder):
    """Digits as PNG, grey values 0..16 scaled to 0..255: 1,437 for training, 360 for testing.

    An example is in the test part if its scikit-learn index is a multiple of `TEST_EVERY`. The file
    does not name the writers, so both parts have examples of the same writers: accuracy is higher
    than it would be on new writers. The test part holds 26 to 48 examples per class.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="8 x 8 handwritten digits of scikit-learn; writers overlap between splits.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, test: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        pixels = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        for index, (digit, label) in enumerate(zip(pixels, labels, strict=True)):
            if (index % TEST_EVERY == 0) == test:
                # Encoded here, because TFDS would use TensorFlow to encode an array.
                encoded = io.BytesIO()
                Image.fromarray(digit).save(encoded, "PNG")
                encoded.seek(0)
                yield index, {"image": encoded, "label": int(label)}
