"""Lists the keys of a configuration: meaning, default, and what is allowed.

    mobilenet config                       # all keys, by section
    mobilenet config optimizer             # those of a section
    mobilenet config '*epoch*'             # those that match a pattern
    mobilenet config lr                    # what other libraries call a key
    mobilenet config --config=experiments/baselines/cifar10.py --changed
    mobilenet config --workdir=runs/c10    # what a run was made with

A pattern is a section, a part of a key's name, or a glob with * and ?. With --config=FILE or
--workdir=RUN the values are those of the file or the run, and a star marks those that are not the
default. mobilenet/CONFIG.md is the whole list as a page, written by --markdown.
"""

import fnmatch
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from mobilenet import config as config_lib
from mobilenet import experiment, keys, rundir, settings
from mobilenet.cli import common, usage
from mobilenet.config import Config

ARGUMENTS = "[PATTERN ...]"
OVERRIDES = "set a key before it is shown"
PAGE = 100  # columns of the page


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    flags.DEFINE_string(
        "config", "", "file.py or file.py:smoke, whose values are shown", flag_values=values
    )
    flags.DEFINE_string("workdir", "", "a run directory, instead of --config", flag_values=values)
    flags.DEFINE_boolean(
        "changed", False, "only keys that differ from the default", flag_values=values
    )
    flags.DEFINE_boolean("markdown", False, "print the page of keys", flag_values=values)


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb."""
    chosen = find(rest) if rest else list(keys.MEANINGS)
    if common.flag(values, "markdown"):
        print(page(chosen), end="")
        return 0
    default = dict(config_lib.flatten(config_lib.get_config()))
    shown = dict(config_lib.flatten(_config(values, overrides)))
    if common.flag(values, "changed"):
        chosen = [key for key in chosen if shown[key] != default[key]]
    print(listing(chosen, shown, default, usage.width()))
    if not rest and not common.flag(values, "changed"):
        print(
            "\nSet a key with --config.KEY=VALUE, such as --config.optimizer.learning_rate=0.2,\n"
            "or in an experiment file: config.optimizer.learning_rate = 0.2"
        )
    return 0


def _config(values: flags.FlagValues, overrides: Mapping[str, str]) -> Config:
    file, workdir = common.flag(values, "config"), common.flag(values, "workdir")
    if file and workdir:
        raise common.UsageError("--workdir has its own configuration; drop --config=FILE.")
    if file:
        return experiment.load_config(file, overrides)
    config = rundir.read_config(Path(workdir)) if workdir else config_lib.get_config()
    experiment.override(config, overrides)
    return config


def find(patterns: Iterable[str]) -> list[str]:
    """The keys that any pattern matches, in the order of `keys.MEANINGS`.

    Raises:
      UsageError: a pattern that matches none.
    """
    found = set()
    for pattern in patterns:
        matching = _matching(pattern.removeprefix("--").removeprefix("config."))
        if not matching:
            near = settings.suggest(keys.MEANINGS, pattern)
            hint = f"did you mean {near}?" if near else "`mobilenet config` lists all keys."
            raise common.UsageError(f"No key matches {pattern!r}; {hint}")
        found.update(matching)
    return [key for key in keys.MEANINGS if key in found]


def _matching(pattern: str) -> list[str]:
    known = list(keys.MEANINGS)
    if any(mark in pattern for mark in "*?["):
        names = {key: (key, key.rpartition(".")[2]) for key in known}
        return [k for k in known if any(fnmatch.fnmatchcase(name, pattern) for name in names[k])]
    section = [key for key in known if key.startswith(f"{pattern.rstrip('.')}.")]
    if section or pattern in known:
        return section or [pattern]
    named = [key for key in known if pattern.lower() in key]
    synonym = keys.KEY_SYNONYMS.get(pattern.lower())
    return named or ([synonym] if synonym else [])


def _by_section(chosen: Iterable[str]) -> dict[str, list[str]]:
    """Section -> its keys."""
    found: dict[str, list[str]] = {}
    for key in chosen:
        found.setdefault(key.rpartition(".")[0], []).append(key)
    return found


def listing(
    chosen: Iterable[str], shown: Mapping[str, Any], default: Mapping[str, Any], columns: int
) -> str:
    """Keys with their values for a terminal.

    Args:
      chosen: the keys.
      shown: key -> its value.
      default: key -> its default; where the value is another one, a star marks the key.
      columns: that lines are fitted to.
    """
    blocks = []
    for section, names in _by_section(chosen).items():
        title = keys.SECTIONS[section]
        lines = [f"{section}: {title}" if section else title]
        for key in names:
            differs = shown[key] != default[key]
            allowed = config_lib.allowed(key)
            note = f"default {_value(default[key])}; " if differs else ""
            lines += _fit(f"{key} = {_value(shown[key])}", columns, "* " if differs else "  ", 8)
            lines += _fit(keys.MEANINGS[key], columns, "      ", 6)
            lines += _fit(f"{note}allowed: {allowed}", columns, "      ", 6)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) if blocks else "No key differs from its default."


def _fit(text: str, columns: int, first: str, indent: int) -> list[str]:
    return textwrap.wrap(
        text,
        columns,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else repr(value)


def page(chosen: Iterable[str]) -> str:
    """The page of keys: mobilenet/CONFIG.md."""
    default = dict(config_lib.flatten(config_lib.get_config()))
    lines = [
        "# Configuration keys",
        "",
        "Written by `mobilenet config --markdown`. Each entry has a key, its default, its meaning,",
        "and what is allowed. Set a key with `--config.KEY=VALUE` on the command line, or with",
        "`config.KEY = VALUE` in an experiment file. Numbers may be written as `1e2` or `1/4`,",
        "tuples as `(1, 2)` or `1,2`.",
    ]
    for section, names in _by_section(chosen).items():
        title = keys.SECTIONS[section]
        lines += ["", f"## {f'`{section}`: ' if section else ''}{title}", ""]
        for key in names:
            entry = f"`{key}` = `{_value(default[key])}`: {keys.MEANINGS[key]}"
            lines += _fit(f"{entry} Allowed: {config_lib.allowed(key)}.", PAGE, "- ", 2)
    return "\n".join(lines) + "\n"
