"""The 1,000 classes of ILSVRC 2012: WordNet's ids and names, in the usual order.

A list of names is recognised as ImageNet's, so that folders named by WordNet's ids
(`n01440764_tench`) find their classes in it. Both lists are from TFDS.
"""

import ast
import collections
import functools
import importlib.resources
import re
from collections.abc import Sequence

# ImageNet's class folders begin with a WordNet id: n01440764 or n01440764_tench.
_ID = re.compile(r"n\d{8}(?=_|$)")
# Names of classes that occur twice contain their index: "crane (134)".
_INDEX = re.compile(r" \(\d+\)$")


@functools.cache
def wordnet_ids() -> tuple[str, ...]:
    """The 1,000 WordNet ids in TFDS's order, which is the usual one."""
    file = importlib.resources.files("tensorflow_datasets") / "datasets/imagenet2012/labels.txt"
    return tuple(file.read_text(encoding="utf-8").split())


@functools.cache
def names() -> tuple[str, ...]:
    """Their names in that order, synonyms separated by commas; () if TFDS no longer has them."""
    file = importlib.resources.files("tensorflow_datasets") / "datasets/siscore/labels.py"
    if not file.is_file():
        return ()
    # The list is parsed, not imported: the module of TFDS loads many other modules.
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "IMAGENET_LABELS_LIST":
            found = tuple(map(str, ast.literal_eval(node.value)))
            return found if len(found) == len(wordnet_ids()) else ()
    return ()


def leading_id(name: str) -> str | None:
    """The WordNet id at the start of a name: "n01440764" for "n01440764_tench"; or None."""
    match = _ID.match(name)
    return match[0] if match else None


def readable(known: Sequence[str]) -> list[str]:
    """Class names for people: "tench (n01440764)" for a name that begins with a WordNet id.

    The words are the first synonym of ImageNet's list. Other names, and ids of classes that are not
    among the 1,000, stay as they are.
    """
    if not any(map(leading_id, known)):
        return list(known)  # most data sets, for which no list need be read
    words = {
        wordnet: name.split(",")[0] for wordnet, name in zip(wordnet_ids(), names(), strict=False)
    }
    found = []
    for name in known:
        word = words.get(leading_id(name) or "")
        found.append(f"{word} ({leading_id(name)})" if word else name)
    return found


def is_usual_order(known: Sequence[str]) -> bool:
    """Whether names are ImageNet's in the usual order, with or without "background" before them.

    Names may be WordNet's ids or words ("tench", "tench, Tinca tinca"). Published lists differ in a
    few words; if half of the classes have the same words at the same positions, this cannot be by
    chance.
    """
    ids = wordnet_ids()
    if len(known) not in (len(ids), len(ids) + 1):
        return False
    last = list(known[-len(ids) :])
    if [leading_id(name) for name in last] == list(ids):
        return True
    same = sum(bool(_words(a) & _words(b)) for a, b in zip(last, names(), strict=False))
    return same >= len(ids) / 2


def class_indices(known: Sequence[str]) -> dict[str, int]:
    """WordNet id -> index in `known`, for the classes whose id is certain.

    An id is certain if a name begins with it, if `known` is ImageNet's list in the usual order, or
    if a word belongs to only one class of ImageNet and only one of `known`.
    """
    found = {wordnet: i for i, name in enumerate(known) if (wordnet := leading_id(name))}
    if found:
        return found
    ids = wordnet_ids()
    if is_usual_order(known):
        first = len(known) - len(ids)
        return {wordnet: first + place for place, wordnet in enumerate(ids)}
    ours, theirs = _unique_words(known), _unique_words(names())
    places: dict[str, set[int]] = {}
    for word in ours.keys() & theirs.keys():
        places.setdefault(ids[theirs[word]], set()).add(ours[word])
    return {wordnet: min(where) for wordnet, where in places.items() if len(where) == 1}


def _words(name: str) -> set[str]:
    """The synonyms in a name, in lower case: "tench, Tinca tinca" has two."""
    name = _INDEX.sub("", name).replace("_", " ").casefold()
    return {word.strip() for word in name.split(",")} - {""}


def _unique_words(known: Sequence[str]) -> dict[str, int]:
    """Synonym -> index of the only name that has it; synonyms of several names are left out."""
    counts = collections.Counter(word for name in known for word in _words(name))
    return {
        word: index
        for index, name in enumerate(known)
        for word in _words(name)
        if counts[word] == 1
    }
