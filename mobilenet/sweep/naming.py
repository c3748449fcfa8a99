"""Names of the variants of a sweep: one text for each, the same wherever it is shown.

A point has the name that the experiment's `variants()` gives it. Without one, its name is the
shortest text that tells it apart: `weights.bits=8 activations.bits=4`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

DEFAULT = "default"  # a point that overrides nothing of its own
Overrides = Mapping[str, Any]


def describe(overrides: Overrides) -> str:
    """All overrides in one line: the shortest clear ending of each key, and its value."""
    short = short_keys(overrides)
    return " ".join(f"{short[key]}={_text(value)}" for key, value in overrides.items()) or DEFAULT


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Dotted key -> its shortest ending that is the ending of no other of these keys."""
    keys = list(keys)
    found = {}
    for key in keys:
        parts = key.split(".")
        endings = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        free = (end for end in endings if not any(_ends(k, end) for k in keys if k != key))
        found[key] = next(free, key)
    return found


def tell_apart(points: Sequence[Overrides]) -> list[str]:
    """For each point the shortest text that tells it from the others.

    What all points have in common is left out; so a point may have no text but DEFAULT.

    Args:
      points: overrides, each of which differs from the others.
    """
    values: dict[str, list[Any]] = {}
    for overrides in points:
        for key, value in overrides.items():
            values.setdefault(key, []).append(value)
    varying = {
        key: found
        for key, found in values.items()
        if len(found) < len(points) or len({_canonical(value) for value in found}) > 1
    }
    short = short_keys(varying)
    return [
        " ".join(
            f"{short[key]}={_distinct(value, varying[key])}"
            for key, value in overrides.items()
            if key in varying
        )
        or DEFAULT
        for overrides in points
    ]


def name_points(
    points: Sequence[Overrides], variants: Mapping[str, Overrides] | None = None
) -> list[str]:
    """The name of each point, which points that differ in their seed alone share.

    Args:
      points: overrides of every point of a sweep.
      variants: name -> overrides, as an experiment's `variants()` returns them. A point that
        changes more than its variant is named by both: "SE, learning_rate=0.1".
    """
    given = {_canonical(_seedless(changes)): name for name, changes in (variants or {}).items()}
    bare = [_seedless(overrides) for overrides in points]
    found = {_canonical(each): given.get(_canonical(each), "") for each in bare}
    unnamed = {_canonical(each): each for each in bare if not found[_canonical(each)]}
    starts = {key: _start(each, variants or {}) for key, each in unnamed.items()}
    for name in dict.fromkeys(starts.values()):
        same = [key for key in unnamed if starts[key] == name]
        rests = [_without(unnamed[key], (variants or {}).get(name, {})) for key in same]
        alone = [name] if name else []
        # They are told apart from the variant itself too, or, if it is none, from all variants.
        texts = tell_apart([*rests, {}] if variants else rests)
        for key, text in zip(same, texts, strict=False):
            found[key] = ", ".join([*alone, text])
    return [found[_canonical(each)] for each in bare]


def label(name: str, seed: int, several: bool) -> str:
    """The name of one run: with its seed, where the sweep has several."""
    return f"{name}, seed {seed}" if several else name


def _start(overrides: Overrides, variants: Mapping[str, Overrides]) -> str:
    """The variant with the most overrides that a point has too; "" if there is none."""
    inside = [
        (len(changes), name)
        for name, changes in variants.items()
        if all(
            key in overrides and _canonical(overrides[key]) == _canonical(value)
            for key, value in changes.items()
        )
    ]
    return max(inside, key=lambda each: each[0])[1] if inside else ""


def _seedless(overrides: Overrides) -> Overrides:
    return _without(overrides, {"seed": None})


def _without(overrides: Overrides, left_out: Overrides) -> Overrides:
    return {key: value for key, value in overrides.items() if key not in left_out}


def _ends(key: str, ending: str) -> bool:
    return f".{key}".endswith(f".{ending}")


def _canonical(value: Any) -> str:
    """A text that is the same for equal values: 6 and 6.0, a tuple and a list."""
    return json.dumps(_plain(value), sort_keys=True, default=repr)


def _plain(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _distinct(value: Any, others: Iterable[Any]) -> str:
    """A value's text; a number has all of its digits if another one would look the same."""
    text = _text(value)
    alike = {_canonical(other) for other in others if _text(other) == text}
    return text if len(alike) == 1 else repr(value)
