"""The result and the error of all readers, and the preprocessing of families of checkpoints."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

# A file may declare more than it holds, because it is compressed or because it is malicious.
# Weights can hardly be compressed, so the declared size must be at most RATIO times the stored
# size. Sizes below FLOOR are never refused.
RATIO, FLOOR = 16, 64 << 20
# A MobileNetV2's file is never larger, even with an optimiser's state and averaged weights.
MOST_BYTES = 4 << 30
MOST_PIXELS = 4096  # largest side of an image that a file may ask for
# The keys of `data.*` that belong to weights: how images are prepared, and of which data set they
# are. The other keys say where the files are and how they are read.
IMAGE_KEYS = ("data.image_size", "data.channels", "data.crop_fraction", "data.normalization")
DATA_SET_KEYS = (
    *("data.name", "data.train_split", "data.test_split", "data.validation_split"),
    "data.validation_fraction",
)


class PretrainedError(ValueError):
    """A file cannot be converted to a network, or the reverse; the message says why, what to do."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """A network's variables, with all settings that are needed to use them correctly.

    Attributes:
      params, batch_stats: nested dictionaries of float32 arrays, as `MobileNetV2` names them.
      settings: dotted configuration keys -> values: the network (`model.*`) and how its images are
        prepared (`data.*`).
      mean, std: per channel, of values in [0, 1]: the input of the network is (x - mean) / std.
      class_names: of the outputs in order, as far as they are known; None if the file has none.
      source: format, file name and sha256 of the file.
      notes: sentences for the user about anything that no setting can express.
      assumed: keys of `settings` that the file does not give; they have the family's usual values.
    """

    params: dict[str, Any]
    batch_stats: dict[str, Any]
    settings: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None
    source: str
    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a family of checkpoints prepares images: a preset of `data.normalization`, in numbers.

    Every family crops the centre 87.5 % (256 to 224 pixels), and this project resizes bilinearly.
    """

    normalization: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """The same as configuration keys."""
        return {"data.normalization": self.normalization, "data.crop_fraction": 0.875}


# x / 127.5 - 1: Keras Applications' "tf" mode, TF-Slim's Inception preprocessing.
TENSORFLOW = Preprocessing("symmetric", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# torchvision's and timm's statistics of ImageNet.
IMAGENET = Preprocessing("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def preset(mean: Sequence[float], std: Sequence[float]) -> str:
    """The value of `data.normalization` for these numbers.

    This is the preset of a family, or else "dataset", whose numbers are stored in the run.
    """
    for family in (TENSORFLOW, IMAGENET):
        if tuple(mean) == family.mean[: len(mean)] and tuple(std) == family.std[: len(std)]:
            return family.normalization
    return "dataset"


def check_size(file: str, declared: int, held: int) -> None:
    """Refuses to allocate far more bytes than a file holds.

    Args:
      file: for the message.
      declared: bytes of the numbers that are about to be read.
      held: bytes from which they are read, as stored.

    Raises:
      PretrainedError: weights cannot be compressed that much.
    """
    if declared > max(FLOOR, RATIO * held):
        raise PretrainedError(
            f"{file} declares {declared:,} bytes of numbers and holds {held:,}; weights cannot be "
            "compressed that much, so nothing was read."
        )


def check_description(weights: Weights) -> None:
    """Compares a file's description of its weights with the weights, before they are used.

    Raises:
      PretrainedError: they differ; the message says what is wrong.
    """
    settings, source = weights.settings, weights.source.split(", sha256 ")[0]

    def refuse(what: str) -> PretrainedError:
        return PretrainedError(f"{source} is damaged: {what}.")

    for key in settings:
        if not key.startswith("model.") and key not in (*IMAGE_KEYS, *DATA_SET_KEYS):
            raise refuse(f"it sets {key!r}, which is not a setting of weights")
    classifier = weights.params.get("classifier")
    kernel = classifier.get("kernel") if isinstance(classifier, Mapping) else classifier
    shape = getattr(kernel, "shape", ())
    outputs, found = settings["model.num_classes"], shape[-1] if shape else 0
    if outputs != found:
        raise refuse(f"it says {outputs!r} classes, but its classifier has {found:,}")
    if outputs == 1:
        raise PretrainedError(
            f"{source} has one output, such as a sigmoid of two classes; classifiers here have one "
            "output per class. Insert a first output with weights and bias 0: the softmax of both "
            "outputs equals the sigmoid."
        )
    if weights.class_names is not None and len(weights.class_names) != outputs:
        raise refuse(f"it has {len(weights.class_names):,} names for {outputs:,} classes")
    size, channels = settings.get("data.image_size"), settings.get("data.channels", 3)
    if size is not None and not (isinstance(size, int) and 1 <= size <= MOST_PIXELS):
        raise refuse(f"its images are {size!r} pixels large, which is not 1 to {MOST_PIXELS:,}")
    for name, values in (("mean", weights.mean), ("std", weights.std)):
        if len(values) not in (1, channels) or not all(map(math.isfinite, values)):
            raise refuse(f"its {name} is {list(values)[:4]} for images of {channels} channels")
    if min(weights.std) <= 0:
        raise refuse(f"its std is {list(weights.std)[:4]}, which must be above 0")


def check_blocks(blocks: Any, tensors: int, source: str) -> None:
    """Refuses a block table with more blocks than the file has tensors, before it is planned.

    Raises:
      PretrainedError: the table has too many blocks, or is not a table.
    """
    try:
        repeats = [row[2] for row in blocks]
        if not all(isinstance(n, int) and 0 < n for n in repeats) or sum(repeats) > tensors:
            raise ValueError
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise PretrainedError(
            f"{source} is damaged: its model.blocks is not a block table for {tensors:,} tensors."
        ) from error


def shape_problems(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], *, most: int = 5
) -> str:
    """Says which tensors are missing, unexpected or of another shape.

    Args:
      found, wanted: name -> shape, in the order of the report.
      most: how many tensors of each kind are named; of the others only the number is given.

    Returns:
      "" if they agree.
    """
    wrong = [
        f"{name} {_shown(found[name])} instead of {_shown(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    kinds = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [
            f"{name} {_shown(shape)}" for name, shape in found.items() if name not in wanted
        ],
        "of the wrong shape": wrong,
    }
    return "; ".join(
        f"{kind}: {', '.join(names[:most])}"
        + (f", and {len(names) - most} more" if len(names) > most else "")
        for kind, names in kinds.items()
        if names
    )


def _shown(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
