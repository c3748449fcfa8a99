"""Starts a run from the weights of another run, or of a converted checkpoint.

`config.pretrained` names the run directory of the weights. `rundir.inherit` has copied the settings
that belong to them; this module turns their tensors into the initial state of the new run.
"""

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mobilenet import imagenet
from mobilenet.config import ConfigError
from mobilenet.train.checkpoints import read_checkpoint
from mobilenet.train.optim import CLASSIFIER, QUANTIZER


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Weights that a run starts from.

    Attributes:
      directory: their run directory.
      step: of their checkpoint.
      classifier: "kept" (the classes are the same), "selected" (columns of the old one, matched by
        the classes' names) or "new".
      variables: `params` and `batch_stats` of the new network.
    """

    directory: Path
    step: int
    classifier: str
    variables: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """Entries for the summary of the run."""
        return {"step": self.step, "classifier": self.classifier}


def match_classes(wanted: Sequence[str], known: Sequence[str]) -> list[int] | str:
    """Finds classes by name among others.

    Names are compared in one Unicode form, because macOS and Linux encode the same letter
    differently. A name is looked up as it is, and then by the WordNet id at its start, as in
    ImageNet's class folders (`n01440764_tench`). `known` may also have the ids, or ImageNet's words
    ("tench, Tinca tinca").

    Args:
      wanted: names of a data set's classes.
      known: names of a classifier's outputs.

    Returns:
      The index in `known` of each of `wanted`; or the first name that has none, or has the same
      index as another. If both lists are equal, names are matched in order, even if some occur
      twice.
    """
    same = [unicodedata.normalize("NFC", name) for name in wanted]
    known = [unicodedata.normalize("NFC", name) for name in known]
    if same == known:
        return list(range(len(known)))
    index = {name: i for i, name in reversed(list(enumerate(known)))}
    by_id = any(imagenet.leading_id(name) for name in wanted)
    ids = imagenet.class_indices(known) if by_id else {}
    found: list[int] = []
    for given, name in zip(wanted, same, strict=True):
        at = index.get(name, ids.get(imagenet.leading_id(name) or ""))
        if at is None or at in found:
            return given
        found.append(at)
    return found


def start_from(
    directory: Path,
    initial: Mapping[str, Any],
    class_names: Sequence[str],
    stored_names: Sequence[str],
) -> Pretrained:
    """The initial variables of a run that starts from the weights in `directory`.

    Args:
      directory: a run directory; its result's checkpoint is read, with averaged weights if it has
        any. From a quantised run only the weights before rounding are taken, not its ranges and
        learned quantisers; a quantised run chooses its own.
      initial: `params` and `batch_stats` of the new network, newly initialised; a classifier for
        other classes is taken from here.
      class_names: of the new network's outputs.
      stored_names: of the weights' classifier.

    Raises:
      CheckpointError: the weights cannot be read.
      ConfigError: they belong to another network; the message says which tensors do not fit.
    """
    restored = read_checkpoint(directory, "result")
    old: dict[str, Any] = restored.eval_variables
    params, kind = without_quantizers(old["params"]), "new"
    classifier = params.pop(CLASSIFIER, None)
    fresh = dict(initial["params"])
    head = fresh.pop(CLASSIFIER, None)
    columns = match_classes(class_names, stored_names)
    if head is not None and classifier is not None and not isinstance(columns, str):
        kind = "kept" if columns == list(range(len(stored_names))) else "selected"
        selected = np.asarray(columns)
        classifier = jax.tree.map(lambda leaf: np.asarray(leaf)[..., selected], classifier)
        if _shapes(classifier) == _shapes(head):
            head = classifier
        else:  # a classifier wider than its classes
            kind = "new"
    _check_same(
        directory,
        {"params": params, "batch_stats": old["batch_stats"]},
        {"params": fresh, "batch_stats": initial["batch_stats"]},
    )
    if head is not None:
        params[CLASSIFIER] = head
    variables = {"params": params, "batch_stats": old["batch_stats"]}
    return Pretrained(directory, restored.step, kind, variables)


def without_quantizers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the float network, without those that quantisers have learned."""
    kept = {
        name: without_quantizers(value) if isinstance(value, Mapping) else value
        for name, value in params.items()
        if name not in QUANTIZER
    }
    return {name: value for name, value in kept.items() if not isinstance(value, Mapping) or value}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _check_same(directory: Path, old: Any, new: Any) -> None:
    found, wanted = _shapes(old), _shapes(new)
    problems = [
        f"{path} is {found.get(path, 'missing')} there and {wanted.get(path, 'unknown')} here"
        for path in sorted(found | wanted)
        if found.get(path) != wanted.get(path)
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if problems[5:] else ""
        raise ConfigError(
            f"The weights in pretrained={str(directory)!r} belong to another network: "
            f"{'; '.join(problems[:5])}{more}."
        )
