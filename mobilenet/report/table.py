"""A results file: its columns, its rows, and which of them a new result replaces."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from mobilenet.report import rows

Row = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Table:
    """One CSV of experiments/results.

    Attributes:
      name: of the file, without its ending.
      fields: its columns, in their order.
      by: the column by which rows are replaced: new rows take the place of all that have their
        value. "" replaces the whole file.
      page: the subject whose page shows the rows.
    """

    name: str
    fields: tuple[str, ...]
    by: str
    page: str

    def path(self, directory: Path) -> Path:
        """The file in experiments/results."""
        return directory / f"{self.name}.csv"

    def rows(self, directory: Path) -> list[dict[str, str]]:
        """The committed rows; none before there are some. Raises FileError for another table."""
        return rows.read(self.path(directory), self.fields)

    def add(self, directory: Path, made: Sequence[Row]) -> None:
        """Puts rows in the place of those that have their value of `by`."""
        if self.by:
            rows.replace(self.path(directory), self.fields, made, by=self.by)
        else:
            rows.write(self.path(directory), self.fields, made)
