"""The layout of a verb's help, and the messages about flags and their values.

A verb's module declares flags with `define(values)`, in the order of use, and may say more:

    __doc__        a description; paragraphs of examples, whose lines start with "mobilenet"; notes
    REQUIRED       names of flags that must be given
    ARGUMENTS      what it takes besides flags, such as "IMAGE ..."
    OVERRIDES      what --config.KEY=VALUE does; a verb with --config takes it anyway
    PLACEHOLDERS   flag -> the word that stands for its value, where PLACES has another one
"""

import difflib
import inspect
import itertools
import re
import textwrap
import types
from collections.abc import Iterable
from typing import Any

from absl import flags

from mobilenet import config as config_lib
from mobilenet import settings
from mobilenet.cli import columns as columns_lib

NARROW, WIDE = 60, 100  # columns that help is fitted to, at least and at most
COLUMN = 26  # where the text of a flag starts

# Flag -> the word that stands for its value.
PLACES = {
    "config": "FILE",
    "workdir": "DIR",
    "data_dir": "DIR",
    "root": "DIR",
    "from_tfrecord": "DIR",
    "to": "DIR",
    "out": "FILE",
    "labels": "FILE",
    "coordinator": "HOST:PORT",
    "checkpoint": "WHICH",
    "split": "SPLIT",
    "scale": "SCALE",
    "dataset": "NAME",
}
KINDS = {"int": "N", "float": "NUMBER", "comma separated list of strings": "A,B"}
ANY_KEY = "set a key of the configuration (`mobilenet config` lists them)"


def width() -> int:
    """Columns to fit text to: those of the terminal, within NARROW and WIDE."""
    return max(NARROW, min(WIDE, columns_lib.width()))


def text(verb: str, module: types.ModuleType, values: flags.FlagValues, columns: int) -> str:
    """A verb's help: usage, description, flags in the order of use, examples, notes.

    Args:
      verb: its name.
      module: of the verb.
      values: in which its flags are defined.
      columns: that lines are fitted to.
    """
    first, examples, notes = _parts(module)
    required = tuple(getattr(module, "REQUIRED", ()))
    shown = [_flag(module, values, name, name in required) for name in values]
    overrides = _takes_overrides(module, values)
    if overrides:
        at = next((i + 1 for i, name in enumerate(values) if name == "config"), len(shown))
        shown.insert(at, ("--config.KEY=VALUE", overrides))
    blocks = [_usage(verb, module, values, required, bool(overrides), columns)]
    blocks += [_paragraph(each, columns) for each in first]
    blocks.append("flags:\n" + "\n".join(_row(*each, columns) for each in shown))
    if examples:
        lines = [line for each in examples for line in each.split("\n")]
        fits = all(len(line) + 2 <= columns for line in lines if " # " in line)
        blocks.append("examples:\n" + "\n".join(_example(each, columns, fits) for each in lines))
    blocks += [_paragraph(each, columns) for each in notes]
    return "\n\n".join(blocks)


def _parts(module: types.ModuleType) -> tuple[list[str], list[str], list[str]]:
    """Paragraphs of a docstring: before the examples, the examples, and after them."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(module.__doc__ or ""))
    is_example = [each.lstrip().startswith("mobilenet ") for each in paragraphs]
    first = is_example.index(True) if True in is_example else len(paragraphs)
    pairs = list(zip(paragraphs, is_example, strict=True))
    examples = [textwrap.dedent(each) for each, example in pairs if example]
    notes = [each for each, example in pairs[first:] if not example]
    return paragraphs[:first], [_joined(each) for each in examples], notes


def _joined(example: str) -> str:
    """Commands of one line each: those that go on after a backslash are joined."""
    return re.sub(r"\s*\\\n\s*", " ", example)


def _usage(
    verb: str,
    module: types.ModuleType,
    values: flags.FlagValues,
    required: Iterable[str],
    overrides: bool,
    columns: int,
) -> str:
    head = f"usage: mobilenet {verb} "
    words = [_name(module, values, name) for name in required]
    arguments = getattr(module, "ARGUMENTS", "")
    words += ["[flags]"] + ["[--config.KEY=VALUE ...]"] * overrides + [arguments] * bool(arguments)
    lines, line = [], head
    for word in words:
        if len(line) + len(word) > columns and line.strip():
            lines.append(line.rstrip())
            line = " " * len(head)
        line += f"{word} "
    return "\n".join([*lines, line.rstrip()])


def _name(module: types.ModuleType, values: flags.FlagValues, name: str) -> str:
    """A flag as it is written: --workdir=DIR, --json, --[no]wait."""
    flag: Any = values[name]
    kind = flag.flag_type()
    if kind == "bool":
        return f"--[no]{name}" if flag.default else f"--{name}"
    if kind == "string enum":
        return f"--{name}={'|'.join(flag.parser.enum_values)}"
    own = getattr(module, "PLACEHOLDERS", {})
    return f"--{name}={own.get(name) or PLACES.get(name) or KINDS.get(kind, 'TEXT')}"


def _flag(
    module: types.ModuleType, values: flags.FlagValues, name: str, required: bool
) -> tuple[str, str]:
    """A flag and its text, with its default or that it is required."""
    flag: Any = values[name]
    default = flag.default
    help_text = re.sub(r"^<[^>]*>: ", "", flag.help)  # absl lists the choices there
    note = ""
    if required:
        note = " (required)"
    elif isinstance(default, bool):
        note = " (default: yes)" if default else ""
    elif default not in (None, "", []):
        note = f" (default: {','.join(default) if isinstance(default, list) else default})"
    return _name(module, values, name), f"{help_text}{note}"


def _row(name: str, help_text: str, columns: int) -> str:
    lines = _wrap(help_text, columns - COLUMN).split("\n") if help_text else []
    head = f"  {name}"
    indented = [f"{'':<{COLUMN}}{line}" for line in lines]
    if lines and len(head) <= COLUMN - 2:
        return "\n".join([f"{head:<{COLUMN}}{lines[0]}", *indented[1:]])
    return "\n".join([head, *indented])


def _paragraph(text: str, columns: int) -> str:
    """A paragraph in lines; its indented lines are a list, and stay lines of their own."""
    found = []
    for indented, group in itertools.groupby(text.split("\n"), lambda line: line[:1].isspace()):
        lines = list(group)
        if indented:
            found += [
                _item(line, columns) for line in textwrap.dedent("\n".join(lines)).split("\n")
            ]
        else:
            found.append(_wrap("\n".join(lines), columns))
    return "\n".join(found)


def _item(line: str, columns: int) -> str:
    """A line of a list; what is too wide goes on below its second column, if it has one."""
    second = re.match(r"\S.*?\s{2,}", line)
    indent = " " * (2 + (second.end() if second else 2))
    return "\n".join(
        textwrap.wrap(
            line,
            columns,
            initial_indent="  ",
            subsequent_indent=indent,
            break_on_hyphens=False,
            break_long_words=False,
        )
    )


def _wrap(paragraph: str, columns: int) -> str:
    """A paragraph in lines; a command between backticks is not broken."""
    words = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), " ".join(paragraph.split()))
    lines = textwrap.wrap(words, columns, break_on_hyphens=False, break_long_words=False)
    return "\n".join(lines).replace("\0", " ")


def _example(line: str, columns: int, comments_fit: bool) -> str:
    """A command of an example, indented; it goes on after a backslash where it is too wide.

    Its comment stays where it is if `comments_fit`; else it stands above the command.
    """
    command, _, comment = line.partition(" # ")
    if comment and comments_fit:
        return f"  {line.rstrip()}"
    lines, current = [f"  # {comment.strip()}"] if comment else [], "  "
    if 2 + len(" ".join(command.split())) <= columns:
        return "\n".join([*lines, f"  {' '.join(command.split())}"])
    for word in command.split():
        if len(current) + len(word) + 2 > columns and current.strip():
            lines.append(f"{current.rstrip()} \\")
            current = "      "
        current += f"{word} "
    return "\n".join([*lines, current.rstrip()])


# ------------------------------------------------------------------------ what flags take


class _Number(flags.ArgumentParser):
    """A number, in the words and the forms of the configuration: 1e2 is a whole number, 1/2 one."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self._kind = settings.Kind(kind)

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):
            return settings.coerce("", self._kind, argument)
        return settings.parse("", self._kind, argument)

    def flag_type(self) -> str:
        return "int" if self._kind.type is int else "float"


def take_numbers(values: flags.FlagValues) -> None:
    """Lets flags for numbers take what keys for numbers take."""
    for name in values:
        flag: Any = values[name]
        kind = {"int": int, "float": float}.get(flag.flag_type())
        if kind is not None:
            flag.parser = _Number(kind)


def explain(
    error: flags.Error, verb: str, module: types.ModuleType, values: flags.FlagValues
) -> str:
    """What absl says of a flag, in one sentence of ours."""
    more = f"`mobilenet help {verb}` lists the flags."
    if isinstance(error, flags.UnrecognizedFlagError):
        name = error.flagname
        near = _near_flag(name, values, overrides=bool(_takes_overrides(module, values)))
        return f"--{name} is not a flag of {verb}; " + (f"did you mean {near}?" if near else more)
    if match := re.fullmatch(r"flag --(\w+)=(.*?): (.*)", str(error), re.DOTALL):
        name, value, _ = match.groups()
        flag: Any = values[name]
        allowed = {
            "int": "it must be a whole number",
            "float": "it must be a number",
            "bool": f"write --{name} or --no{name}",
        }.get(flag.flag_type(), "")
        if flag.flag_type() == "string enum":
            allowed = f"allowed are {', '.join(flag.parser.enum_values)}"
        if allowed:
            return f"--{name} is {value!r}; {allowed}."
    if match := re.fullmatch(r"Missing value for flag -*(\w+)", str(error)):
        (name,) = match.groups()
        return f"--{name} has no value; write {_name(module, values, name)}."
    return f"{error} {more}"


def _takes_overrides(module: types.ModuleType, values: flags.FlagValues) -> str:
    return getattr(module, "OVERRIDES", ANY_KEY if "config" in values else "")


def _near_flag(name: str, values: flags.FlagValues, *, overrides: bool) -> str:
    """The flag, or the key of the configuration as a flag, that was probably meant."""
    near = difflib.get_close_matches(name, list(values), n=1, cutoff=0.7)
    if near:
        return f"--{near[0]}"
    if not overrides:
        return ""
    known = [key for key, _ in config_lib.flatten(config_lib.get_config())]
    if name in known:
        return f"--config.{name}"
    meant = settings.suggest(known, name)
    return f"--config.{meant}" if meant in known else ""


# ------------------------------------------------------------------------ keys in messages


def as_flags(message: str) -> str:
    """A message in which dotted keys are written as the command line takes them.

    "data.image_size is 8; ..., or lower model.stem_strides" says --config.data.image_size and
    --config.model.stem_strides then, which can be pasted.
    """
    known = [key for key, _ in config_lib.flatten(config_lib.get_config())]
    dotted = "|".join(re.escape(key) for key in sorted(known, key=len, reverse=True) if "." in key)
    # Keys without a dot are words as well: they are keys where they are given a value.
    words = "|".join(key for key in known if "." not in key)
    # What reads images has its settings by their last names: on_error='skip'.
    own = [key.removeprefix("data.") for key in known if key.startswith("data.") and "_" in key]
    message = re.sub(rf"(?<![\w./-])({'|'.join(map(re.escape, own))})(?==)", r"data.\1", message)
    pattern = rf"(?:{dotted})(?![\w*]|\.\w)|(?:{words})(?==)|(?<=did you mean )(?:{words})(?=\?)"
    return re.sub(rf"(?<![\w./-])(?:{pattern})", r"--config.\g<0>", message)
