"""Settings: the keys of a configuration, and the values that each of them takes.

A `Section` checks what is set, so that an experiment file, a sweep, a stored configuration and a
command line are answered in the same words. A key's kind comes from its default.
"""

import ast
import contextlib
import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import ml_collections
from ml_collections.config_dict import FieldReference

from mobilenet import keys

# Keys that hold a path: ~ is the home directory, whoever sets them.
PATHS = (
    "pretrained",
    "compress.distillation.teacher",
    "quantize.calibration_dir",
    "data.data_dir",
)
# Keys whose tuples hold names: a text is taken apart at its commas.
NAMES = ("log.writers",)
# Keys whose tuples hold whole numbers; of model.blocks, the ratios may be others.
WHOLE = ("model.blocks", "model.stage_strides", "model.expanded_features")
WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "a tuple, such as (1, 2) or (1,)",
    object: "a number, a tuple of numbers",
}
LARGEST = 2**63  # whole numbers are below it: no array has a dimension as large
SHOWN = 80  # characters of a value in a message


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the key, the value and what is allowed."""


class ExperimentError(ConfigError):
    """A mistake in an experiment file; the message names keys as the file writes them."""


class SettingError(ConfigError):
    """A key that does not exist, or a value of another kind than the key takes."""


class UnknownKeyError(SettingError, AttributeError):
    """A key that does not exist; also an AttributeError, as of any object."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a key takes.

    Attributes:
      type: bool, int, float, str, tuple, or object: numbers and tuples alike.
      optional: whether it takes None too.
    """

    type: type
    optional: bool = False

    @property
    def words(self) -> str:
        """For a message: "a whole number or None"."""
        return f"{WORDS[self.type]} or None" if self.optional else WORDS[self.type]


def unknown_key(known: Iterable[str], key: str) -> UnknownKeyError:
    """The error of a key that does not exist, with the one that was probably meant."""
    known = list(known)
    near = suggest(known, key)
    section = section_of(known, key.rpartition(".")[0]) if "." in key else ""
    hint = f"`mobilenet config {section}` lists those of {section}."
    if near == key:
        hint = f"it is a section, and `mobilenet config {key}` lists its keys."
    elif near:
        hint = f"did you mean {near}?"
    elif not section:
        hint = "`mobilenet config` lists all keys."
    return UnknownKeyError(f"{key} is not a configuration key; {hint}")


def choices(given: str, known: Iterable[str]) -> str:
    """What to give in place of a name that is not known: the nearest ones, or else all."""
    known = list(known)
    near = difflib.get_close_matches(given, known, n=3, cutoff=0.6)
    near = near or [each for each in known if given and given in each][:3]
    return f"did you mean {' or '.join(near)}?" if near else f"allowed are {', '.join(known)}."


def suggest(known: Iterable[str], key: str) -> str:
    """The key or section that was probably meant by one that does not exist; "" if none is near.

    The section is matched first, then the key within it: "optimiser.lr" is
    "optimizer.learning_rate". What other libraries call a key counts (`mobilenet.keys`).

    Args:
      known: all keys, dotted.
      key: dotted.
    """
    known = list(known)
    place, _, name = key.rpartition(".")
    if not place and (section := section_of(known, name)):
        return section
    section = section_of(known, place) if place else ""
    within = [each for each in known if section and each.startswith(f"{section}.")]
    synonym = keys.KEY_SYNONYMS.get(name, "")
    if synonym and synonym in known:
        return synonym
    exact = [each for each in (*within, *known) if each.rpartition(".")[2] == name]
    return exact[0] if exact else _nearest(within or known, name)


def section_of(known: Iterable[str], text: str) -> str:
    """The section that a text is, or is meant to be; "" if none is near."""
    sections = sorted({each.rpartition(".")[0] for each in known if "." in each})
    sections += sorted({each.partition(".")[0] for each in sections if "." in each})
    if text in sections:
        return text
    last = text.rpartition(".")[2]
    if last in keys.SECTION_SYNONYMS:
        return keys.SECTION_SYNONYMS[last]
    near = [each for each in sections if each.rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(text, sections, n=1, cutoff=0.7)
    return near[0] if near else ""


def _nearest(known: Iterable[str], name: str) -> str:
    """The key whose last part, or a word of it, is nearest to a name; "" if none is near."""
    by_name: dict[str, str] = {}
    for each in known:
        last = each.rpartition(".")[2]
        for words in (last, *last.split("_")):
            by_name.setdefault(words, each)
    near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.65)
    return by_name[near[0]] if near else ""


def parse(key: str, kind: Kind, text: str) -> Any:
    """A value as a command line has it, as one of the key's kind.

    Numbers may be fractions, alone or in tuples: 1/4, (3/4, 4/3).

    Raises:
      SettingError: text that is no value of the kind.
    """
    if kind.type is str:
        return coerce(key, kind, text)
    if kind.type is bool:
        found = {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
        if found is None:
            raise SettingError(f"{key} is {_shown(text)}; it must be true or false.")
        return found
    try:
        value = ast.literal_eval(_Fractions().visit(ast.parse(text.strip(), mode="eval")))
    except (ValueError, SyntaxError, MemoryError, RecursionError, ArithmeticError):
        value = text
    try:
        return coerce(key, kind, value)
    except SettingError:
        raise SettingError(f"{key} is {_shown(text)}; it must be {kind.words}.") from None


class _Fractions(ast.NodeTransformer):
    """Replaces a quotient of two numbers by its value."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        if not isinstance(node.op, ast.Div):
            return node
        above, below = (ast.literal_eval(each) for each in (node.left, node.right))
        if not (_is_number(above) and _is_number(below)):
            raise ValueError("only numbers are divided")
        return ast.copy_location(ast.Constant(above / below), node)


def coerce(key: str, kind: Kind, value: Any) -> Any:
    """A value as the key keeps it: whole numbers as int, numbers as float, lists as tuples.

    NumPy's numbers and arrays are taken as Python's; ~ in a path is the home directory.

    Args:
      key: dotted.
      kind: of the key.
      value: any.

    Raises:
      SettingError: a value of another kind, such as True for a number.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None and kind.optional:
        return None
    if key in NAMES and isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    if isinstance(value, list | tuple) and kind.type in (tuple, object):
        return _tuples(key, value)
    if kind.type is object or (kind.type is bool and isinstance(value, bool)):
        return value
    if kind.type is str:
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        if isinstance(value, str):
            return os.path.expanduser(value) if key in PATHS else value
    if kind.type is float and _is_number(value):
        with contextlib.suppress(OverflowError):
            return float(value)
    if kind.type is int and _is_whole(value) and abs(value) < LARGEST:
        return int(value)
    raise SettingError(f"{key} is {_shown(value)}; it must be {kind.words}.")


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> TypeGuard[int | float]:
    return _is_number(value) and (isinstance(value, int) or value.is_integer())


def _tuples(key: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_tuples(key, each) for each in value)
    if isinstance(value, bool):
        raise SettingError(f"{key} has {value} in its tuple, where a number must be.")
    return int(value) if key in WHOLE and _is_whole(value) else value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


class Section(ml_collections.ConfigDict):
    """A part of a configuration that checks what is set, and knows which of its keys were.

    Made by `checked`, or by copying one. Its kinds stand in for the checks of `ConfigDict`, which
    takes True for 1 and None for anything, and forgets the kind of an optional key in a copy.
    """

    _prefix = ""
    _known: tuple[str, ...] = ()
    _kinds: Mapping[str, Kind] | None = None  # None: under construction, nothing is checked
    _set: set[str]  # since the construction

    def __init__(self, initial_dictionary: Any = None, type_safe: bool = False, **options: Any):
        del type_safe
        object.__setattr__(self, "_set", set())  # not a key
        super().__init__(initial_dictionary, type_safe=False, **options)

    def kind(self, key: str) -> Kind:
        """What a key takes, which may be dotted; UnknownKeyError if there is none."""
        first, _, rest = key.partition(".")
        part = self._fields.get(first)
        if rest and isinstance(part, Section):
            return part.kind(rest)
        if rest or first not in (self._kinds or {}):
            raise unknown_key(self._known, f"{self._prefix}{key}")
        return (self._kinds or {})[first]

    def __setitem__(self, key: str, value: Any) -> None:
        if self._kinds is not None and "." not in key:
            value = self._check(key, value)
            self._set.add(key)
        super().__setitem__(key, value)

    def was_set(self, key: str) -> bool:
        """Whether a key of this section has been set, to its default or to another value."""
        return key in self._set

    def unset(self, key: str, default: Any) -> None:
        """Gives a key of this section its default back, as if nobody had set it."""
        self[key] = default
        self._set.discard(key)

    def _check(self, key: str, value: Any) -> Any:
        name, kinds = f"{self._prefix}{key}", self._kinds or {}
        if key in kinds:
            return value if isinstance(value, FieldReference) else coerce(name, kinds[key], value)
        part = self._fields.get(key)
        if isinstance(part, Section):
            if isinstance(value, Section) and value._kinds == part._kinds:
                return value
            example = next(known for known in self._known if known.startswith(f"{name}."))
            raise SettingError(f"{name} is a section; set its keys, such as {example}.")
        if self.is_locked:
            raise unknown_key(self._known, name)
        return value

    def __getattr__(self, attribute: str) -> Any:
        try:
            return super().__getattr__(attribute)
        except AttributeError:
            if self._kinds is None or attribute.startswith("_"):
                raise
            raise unknown_key(self._known, f"{self._prefix}{attribute}") from None

    def copy_and_resolve_references(self, visit_map: Any = None) -> "Section":
        copy = super().copy_and_resolve_references(visit_map)
        copy._learn(self._prefix, self._known, self._kinds)
        copy._set.update(self._set)
        return copy

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._learn(state.get("_prefix", ""), state.get("_known", ()), state.get("_kinds"))
        self._set.clear()
        self._set.update(state["_set"])

    def _learn(self, prefix: str, known: tuple[str, ...], kinds: Mapping[str, Kind] | None) -> None:
        for name, value in (("_prefix", prefix), ("_known", known), ("_kinds", kinds)):
            object.__setattr__(self, name, value)  # not a key


def checked(config: ml_collections.ConfigDict) -> Section:
    """A locked copy in which every key takes what its present value is one of.

    A placeholder takes None and what it is a placeholder of.
    """
    made = _section(config, "", tuple(_names(config)))
    made.lock()
    return made


def _names(part: ml_collections.ConfigDict, prefix: str = "") -> Iterable[str]:
    for key, value in part.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _names(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _section(part: ml_collections.ConfigDict, prefix: str, known: tuple[str, ...]) -> Section:
    section, kinds = Section(), {}
    for key, value in part.items(preserve_field_references=True):
        if isinstance(value, ml_collections.ConfigDict):
            section[key] = _section(value, f"{prefix}{key}.", known)
            continue
        section[key] = value
        optional = isinstance(value, FieldReference)
        kinds[key] = Kind(value.get_type() if optional else type(value), optional)
    section._learn(prefix, known, kinds)
    return section
