"""Nested dictionaries of arrays, as Flax has variables, by path."""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util

Path = tuple[str, ...]


def flatten(tree: Any) -> dict[Path, Any]:
    """Path of a leaf -> leaf, of a tree of mappings, in its order."""
    return flax.traverse_util.flatten_dict(dict(tree))  # pyright: ignore[reportReturnType]


def nest(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """The tree of mappings that `flatten` made this of."""
    return flax.traverse_util.unflatten_dict(flat)
