"""Text for a terminal: names of strangers cannot steer it, and every encoding can show them."""

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from typing import Any, cast

# What terminals obey or what reorders a line is not printable in Unicode's sense; these two are
# neither, and words of several scripts need them.
_JOINERS = "\u200c\u200d"

_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def printable(text: object) -> str:
    """The text in one line, with line breaks and control characters written as in Python: \\x1b."""
    return "".join(
        c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def printable_lines(text: str) -> str:
    """`printable` of each line."""
    return "\n".join(map(printable, text.split("\n")))


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 step", "1,200 steps"; `plural` is for nouns that add no s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


class _Plain:
    """A text stream that passes printable lines on; styles of other programs are left out."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(printable_lines(_STYLE.sub("", text)))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def plain_output() -> Iterator[None]:
    """Makes whatever is printed to stdout, within, lines of printable text."""
    with contextlib.redirect_stdout(cast(Any, _Plain(sys.stdout))):
        yield


def show_every_character() -> None:
    """Lets stdout and stderr write what their encoding lacks as \\u..., in place of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
