"""Transcripts in Markdown: the commands that a page shows, run again, and what they print compared.

A fenced block `console` holds commands after "$ " and what they print. A line "..." stands for any
number of lines. A block `python NAME.py` is a file that the commands after it use; a block `python`
without a name is a program. A comment `<!-- numbers: of what -->` before a block says that its
numbers are of data that the project does not have: they are not compared.
"""

import dataclasses
import functools
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

FENCE = re.compile(
    r"^(?:<!-- numbers: (.*?) -->\n)?```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
ELLIPSIS = "..."
# A number with the unit of a time, a rate or a memory: it differs with every run.
TIMING = re.compile(
    r"\d[\d.,]*m\d+s|\d[\d.,–-]* ?(?:ms|s|min|h|MB|images/s)\b"
    r"|data wait \d+ %|\b\d+:\d\d(?::\d\d)?\b"
)
NUMBER = re.compile(r"[-+−]?\d[\d,]*(?:\.\d+)?")
# Results of training differ between kinds of processor by rounding, which training amplifies.
RELATIVE, ABSOLUTE = 0.05, 1.5


LINK = re.compile(r"\]\(([^)#\s]+)")


def dead_links(page: Path) -> list[str]:
    """The links of a page to files that are not there."""
    links = LINK.findall(page.read_text())
    return [link for link in links if "://" not in link and not (page.parent / link).exists()]


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of a page, or a file that it shows.

    Attributes:
      text: what the shell gets; of a file its content.
      expected: the lines that the page shows after it.
      line: where it stands in the page, from 1.
      file: name of the file; empty for a command.
      numbers: whether the numbers of the output are compared.
    """

    text: str
    expected: tuple[str, ...]
    line: int
    file: str = ""
    numbers: bool = True


def read_commands(page: str) -> list[Command]:
    """The commands and files of a page, in its order."""
    found = []
    for block in FENCE.finditer(page):
        foreign, language, name, body = block.groups()
        line = page.count("\n", 0, block.start(4)) + 1
        if language == "python":
            text = body if name else f"python - <<'END'\n{body}END"
            found.append(Command(text, (), line, name))
        elif language == "console":
            found += _read_console(body, line, numbers=foreign is None)
    return found


def _read_console(body: str, line: int, *, numbers: bool) -> Iterator[Command]:
    lines = body.splitlines()
    starts = [i for i, text in enumerate(lines) if text.startswith("$ ")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        last = start
        while lines[last].endswith("\\"):
            last += 1
        text = "\n".join([lines[start][2:], *lines[start + 1 : last + 1]])
        shown = tuple(filter(str.strip, lines[last + 1 : end]))
        yield Command(text, shown, line + start, numbers=numbers)


def same_line(expected: str, actual: str, *, numbers: bool = True) -> bool:
    """Whether two lines say the same: words and whole numbers alike, measured numbers nearly.

    Times, rates and memory are not compared; numbers with a decimal point may differ by `RELATIVE`
    or `ABSOLUTE`, whichever is more. Without `numbers` only the words count, in any
    order: which class comes first depends on the data.
    """
    expected, actual = (TIMING.sub("TIME", text) for text in (expected, actual))
    words = [NUMBER.sub("NUMBER", text).split() for text in (expected, actual)]
    if not numbers:
        return sorted(words[0]) == sorted(words[1])
    if words[0] != words[1]:
        return False
    pairs = zip(NUMBER.findall(expected), NUMBER.findall(actual), strict=True)
    return all(_same_number(one, other) for one, other in pairs)


def _same_number(expected: str, actual: str) -> bool:
    if "." not in expected:
        return expected == actual
    one, other = (float(text.replace(",", "").replace("−", "-")) for text in (expected, actual))
    return abs(one - other) <= max(ABSOLUTE, RELATIVE * abs(one))


def first_difference(
    expected: Sequence[str], actual: Sequence[str], *, numbers: bool = True
) -> str:
    """The first expected line that the output lacks in its place; "" when all are there."""
    actual = [line for line in actual if line.strip()]
    same = functools.partial(same_line, numbers=numbers)
    at, free = 0, False
    for line in expected:
        if line.strip() == ELLIPSIS:
            free = True
            continue
        places = range(at, len(actual) if free else min(at + 1, len(actual)))
        place = next((i for i in places if same(line, actual[i])), None)
        if place is None:
            got = actual[at] if at < len(actual) else "the end"
            return f"expected {line!r}, got {'no such line' if free else repr(got)}"
        at, free = place + 1, False
    if expected and not free and at < len(actual):
        return f"expected the end, got {actual[at]!r}"
    return ""


class Shell:
    """One bash that runs commands in turn: directories and variables last, as in a terminal."""

    def __init__(self, directory: Path, environment: Mapping[str, str]):
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=directory,
            env={**environment, "PWD": os.fspath(directory)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
        )

    def run(self, command: str) -> tuple[int, list[str]]:
        """The exit code and the lines that a command prints, errors included."""
        assert self._process.stdin is not None and self._process.stdout is not None
        mark = "end of the command"
        self._process.stdin.write(f"{command}\nprintf '\\n{mark} %d\\n' $?\n")
        self._process.stdin.flush()
        lines = []
        for line in self._process.stdout:
            if line.startswith(mark):
                return int(line.removeprefix(mark)), lines
            lines.append(line.rstrip("\n"))
        raise RuntimeError(f"the shell ended in {command!r}: {lines[-5:]}")

    def close(self) -> None:
        self._process.communicate("exit\n")
