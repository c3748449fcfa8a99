"""What a reader returns, the error it raises, and the preprocessing of families of checkpoints."""

import dataclasses
from collections.abc import Mapping
from typing import Any


class PretrainedError(ValueError):
    """A file that cannot become a network, or the reverse; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """A network's variables with everything that must come along to use them rightly.

    Attributes:
      params, batch_stats: nested dictionaries of float32 arrays, as `MobileNetV2` names them.
      settings: dotted configuration keys -> values: the network (`model.*`) and how pictures are
        shown to it (`data.*`).
      mean, std: per channel, of values in [0, 1]: the network sees (x - mean) / std.
      class_names: of the outputs in order, as far as they are known; None if the file has none.
      source: format, file name and sha256 of what was read.
      notes: what a user should know and no setting can say, a sentence each.
    """

    params: dict[str, Any]
    batch_stats: dict[str, Any]
    settings: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None
    source: str
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a family of checkpoints was shown pictures: a preset of `data.normalization`, in numbers.

    Every family crops the centre 87.5 % (256 to 224 pixels) and this project resizes bilinearly.
    """

    normalization: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """As configuration keys."""
        return {"data.normalization": self.normalization, "data.crop_fraction": 0.875}


# x / 127.5 - 1: Keras Applications' "tf" mode, TF-Slim's Inception preprocessing.
TENSORFLOW = Preprocessing("symmetric", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# torchvision's and timm's statistics of ImageNet.
IMAGENET = Preprocessing("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def shape_problems(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], *, most: int = 5
) -> str:
    """Which tensors are missing, unexpected or of another shape: the first few, and how many more.

    Args:
      found, wanted: name -> shape, in the order in which they are to be reported.
      most: of each kind to name.

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
