"""What pages are made of: prose, tables of few columns, and cells that are written one way."""

import dataclasses
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from mobilenet.report.table import Table

Row = Mapping[str, str]

COLUMNS = 6  # the most that a table has
WIDTH = 110  # characters of a table's line
PROSE = 100  # characters of any other line
# Networks below this accuracy, in percent, have not learnt yet: CIFAR-10 allows more than 90.
LEARNT = 80.0
PIPELINE = "shows that the pipeline runs, not what holds"
NO_CORRECTION = "Each interval is judged by itself, without a correction for their number."
VERDICTS = (
    "A difference is higher or lower when its 95 % interval lies above or below zero, and "
    f"inconclusive when the interval holds zero. {NO_CORRECTION}"
)


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a table, and the committed rows that it shows."""

    cells: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table."""

    heads: tuple[str, ...]
    lines: tuple[Line, ...]

    def text(self) -> str:
        """The table in Markdown."""
        head, *lines = (
            f"| {' | '.join(cells)} |"
            for cells in (self.heads, *(line.cells for line in self.lines))
        )
        return "\n".join([head, "|" + "---|" * len(self.heads), *lines])


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
      heading: of it.
      grids: its tables, in their order.
      text: above the tables, a paragraph each.
      notes: below them, a list.
      source: where the numbers come from, see `source`.
    """

    heading: str
    grids: tuple[Grid, ...]
    text: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Page:
    """The page of a subject.

    Attributes:
      title: its heading.
      question: that the experiments ask.
      base: the network that they start from, and its accuracy.
      registered: the comparisons that were named before the runs.
      conclusion: sentences; the first one says most, and stands in the index too.
      sections: with the tables.
      figures: file below figures/ -> what it shows.
      legend: how the tables are to be read.
      caution: what the reader must know before the numbers; "" for nothing.
    """

    title: str
    question: str
    base: str
    registered: str
    conclusion: tuple[str, ...]
    sections: tuple[Section, ...]
    figures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    legend: str = ""
    caution: str = ""

    @property
    def grids(self) -> list[Grid]:
        """The tables of all sections."""
        return [grid for section in self.sections for grid in section.grids]

    def text(self) -> str:
        """The page in Markdown."""
        first, *others = self.conclusion
        parts = [
            f"# {self.title}",
            "<!-- Written by `mobilenet report` from the rows next to it; do not edit. -->",
            paragraph(f"**Question.** {self.question}"),
            paragraph(f"**Base network.** {self.base}"),
            quote(self.caution) if self.caution else "",
            paragraph(f"**Comparisons registered.** {self.registered}"),
            paragraph(f"**Conclusion.** {first}"),
            bullets(others),
            *(f"![{caption}](figures/{file})" for file, caption in self.figures.items()),
            paragraph(f"**How to read the tables.** {self.legend}"),
        ]
        for section in self.sections:
            parts += [f"## {section.heading}", *map(paragraph, section.text)]
            parts += [grid.text() for grid in section.grids if grid.lines]
            parts += [bullets(section.notes), paragraph(section.source)]
        parts.append("[All results](README.md)")
        return "\n\n".join(part for part in parts if part) + "\n"


# What a line must not end within: intervals, and numbers with their names or units.
TOGETHER = re.compile(r"\[[-+.\d]+, [-+.\d]+\]|\bn = \d+|\d %|`[^`]*`")


def wrap(text: str, head: str = "", indent: str = "") -> str:
    """Text in lines of at most `PROSE` characters."""
    kept = TOGETHER.sub(lambda match: match.group().replace(" ", "\0"), text)
    filled = textwrap.fill(
        kept,
        PROSE,
        initial_indent=head,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace("\0", " ")


def paragraph(text: str) -> str:
    """A paragraph."""
    return wrap(text)


def quote(text: str) -> str:
    """A paragraph that stands out."""
    return wrap(text, "> ", "> ")


def bullets(texts: Iterable[str]) -> str:
    """A list."""
    return "\n".join(wrap(text, "- ", "  ") for text in texts)


def source(table: Table, logs: str = "", config: str = "") -> str:
    """The line under a table: where its rows and logs are.

    Args:
      table: that the rows are of.
      logs: folder below experiments/results; "" for none.
      config: the experiment file with its argument; "" for none.
    """
    parts = [f"[{table.name}.csv]({table.name}.csv)"]
    parts += [f"[logs]({logs})"] * bool(logs) + [f"`{config}`"] * bool(config)
    return f"From {', '.join(parts)}."


# --------------------------------------------------------------------------------------- cells


def find(rows: Iterable[Row], where: Mapping[str, str]) -> Row | None:
    """The first row that has these values, column -> value; None without one."""
    return next((row for row in rows if all(row[k] == v for k, v in where.items())), None)


def count(row: Row) -> int:
    """The number of a row's seeds."""
    return len(row["seeds"].split())


def ends(low: str, high: str, sign: str = "") -> str:
    """An interval: "[44.49, 46.44]"; with the sign "+" as a difference has it. "" without one."""
    if not (low and high):
        return ""
    return f"[{float(low):{sign}.2f}, {float(high):{sign}.2f}]"


def value(middle: str, low: str, high: str, sign: str = "") -> str:
    """A number with its interval, "–" without a number."""
    return f"{float(middle):{sign}.2f} {ends(low, high, sign)}".rstrip() if middle else "–"


def difference(row: Row) -> str:
    """How far the variant of a row is from its baseline, with the interval."""
    return value(row["difference"], row["difference_low"], row["difference_high"], "+")


def judged(low: str | float, high: str | float) -> str:
    """What an interval of a difference says."""
    if low == "" or high == "":
        return "no interval"
    return "higher" if float(low) > 0 else "lower" if float(high) < 0 else "inconclusive"


def verdict(row: Row) -> str:
    """What the interval of a row's difference says; "–" without a difference."""
    return judged(row["difference_low"], row["difference_high"]) if row["difference"] else "–"


def million(text: str) -> str:
    """A count in millions, "–" without one."""
    return f"{int(text) / 1e6:.1f} M" if text else "–"


def thousands(text: str) -> str:
    """A count with separators, "–" without one."""
    return f"{int(text):,}" if text else "–"


def with_n(head: str, rows: Sequence[Row], count: Callable[[Row], int] = count) -> tuple[str, bool]:
    """A column's head that states n, and whether rows differ in it and need a column for it.

    Args:
      head: "difference, points [95 % t over seeds]".
      rows: of the table.
      count: row -> its n.
    """
    counts = {count(row) for row in rows}
    return (f"{head}, n = {counts.pop()}", False) if len(counts) == 1 else (head, True)


def span(values: Iterable[float]) -> str:
    """The least and the largest of values: "96.80 to 99.00", or the one that all have."""
    found = [f"{each:.2f}" for each in sorted(values)]
    return found[0] if found[0] == found[-1] else f"{found[0]} to {found[-1]}"


def figures(directory: Path, captions: Mapping[str, str]) -> dict[str, str]:
    """Those figures, file name -> caption, that are in experiments/results/figures."""
    folder = directory / "figures"
    return {name: text for name, text in captions.items() if (folder / name).exists()}


def several(rows: Iterable[Row], field: str) -> str:
    """The distinct values of a column."""
    return ", ".join(dict.fromkeys(row[field] for row in rows if row[field]))


def remarks(rows: Iterable[Row]) -> tuple[str, ...]:
    """The distinct remarks of rows, as sentences."""
    found = dict.fromkeys(row["remarks"] for row in rows if row["remarks"])
    return tuple(f"{text[0].upper()}{text[1:]}." for text in found)


def of_cifar(row: Row) -> bool:
    """Whether a row is of CIFAR-10, which allows more than `LEARNT`: ImageNet does not."""
    return not row["config"].endswith(":imagenet")


def caution(name: str, accuracies: Sequence[float]) -> str:
    """The warning about networks that have not learnt yet; "" where they have.

    Args:
      name: of the networks, "The CIFAR-10 networks".
      accuracies: of the float networks that everything starts from, in percent.
    """
    if not accuracies or max(accuracies) >= LEARNT:
        return ""
    low, high = min(accuracies), max(accuracies)
    span = f"{low:.0f} %" if round(low) == round(high) else f"{low:.0f} to {high:.0f} %"
    return (
        f"{name} have {span} test accuracy: they were trained for minutes on two CPU cores and "
        f"have not learnt what CIFAR-10 allows. What rests on them {PIPELINE}."
    )
