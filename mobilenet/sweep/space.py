"""Parts of an experiment's `sweep()`: lists of overrides, and ranges to search.

    def sweep(arg=""):
        return space.product(
            space.grid({"model.expansion_ratio": (1, 2, 4, 6)}),
            space.seeds(3),
        )

An override is a dictionary of dotted keys; lists of them add up with `+`.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Overrides = dict[str, Any]

SEED = "{seed}"  # in a text: the seed of the run


@dataclasses.dataclass(frozen=True)
class Range:
    """Values that a search (`--search`) draws from, in place of one value.

    Attributes:
      low, high: both ends are included.
      log: uniform in the logarithm.
      integer: only whole numbers.
      choices: these values instead of an interval.
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    choices: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.choices:
            return
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"The range is {self.low} to {self.high}; it must rise and be finite.")
        if self.log and self.low <= 0:
            raise ValueError(f"A logarithmic range starts at {self.low}; it must be above 0.")


def uniform(low: float, high: float) -> Range:
    """Numbers between `low` and `high`."""
    return Range(low, high)


def log_uniform(low: float, high: float) -> Range:
    """Numbers between `low` and `high`, uniform in their logarithm: learning rates, decays."""
    return Range(low, high, log=True)


def integers(low: int, high: int) -> Range:
    """Whole numbers from `low` to `high`, both included."""
    return Range(low, high, integer=True)


def choice(*values: Any) -> Range:
    """One of the values."""
    if not values:
        raise ValueError("choice() has no values; give at least one.")
    return Range(choices=values)


def grid(axes: Mapping[str, Sequence[Any]]) -> list[Overrides]:
    """Every combination of the axes' values; the last axis varies fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def zipped(axes: Mapping[str, Sequence[Any]]) -> list[Overrides]:
    """The axes' first values together, then their second, and so on.

    Raises:
      ValueError: axes of different lengths.
    """
    lengths = {key: len(values) for key, values in axes.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Zipped axes have different lengths: {lengths}.")
    return [dict(zip(axes, values, strict=True)) for values in zip(*axes.values(), strict=True)]


def seeds(count: int, start: int = 0) -> list[Overrides]:
    """`count` replicates that differ in their seed."""
    if count < 1:
        raise ValueError(f"seeds({count}) was given; use at least 1.")
    return grid({"seed": range(start, start + count)})


def replicates(variants: Iterable[Mapping[str, Any]], count: int) -> list[Overrides]:
    """Each variant with `count` seeds; those that train for 0 epochs have one, the first ones."""
    found = [dict(variant) for variant in variants]
    once = [variant for variant in found if variant.get("train.num_epochs") == 0.0]
    several = [variant for variant in found if variant not in once]
    return [*product(once, seeds(1)), *product(several, seeds(count))]


def product(*parts: Sequence[Overrides]) -> list[Overrides]:
    """Every combination of one override of each part, merged; the last part varies fastest.

    A text may say "{seed}" for its run's seed (`filled`): `{"pretrained": "runs/dense_{seed}"}`.

    Raises:
      ValueError: two parts set the same key.
    """
    merged: list[Overrides] = []
    for combination in itertools.product(*parts):
        overrides: Overrides = {}
        for part in combination:
            twice = overrides.keys() & part.keys()
            if twice:
                raise ValueError(f"{', '.join(sorted(twice))} is set by two parts of a product.")
            overrides |= part
        merged.append(overrides)
    return merged


def filled(overrides: Mapping[str, Any], seed: int) -> Overrides:
    """Overrides with the run's seed where their texts say "{seed}", as directories do."""
    named = {k: str(v).replace(SEED, str(seed)) for k, v in naming_seed(overrides).items()}
    return {**overrides, **named}


def naming_seed(overrides: Mapping[str, Any]) -> Overrides:
    """The overrides whose texts say "{seed}"; replicates share them."""
    return {k: v for k, v in overrides.items() if isinstance(v, str) and SEED in v}
