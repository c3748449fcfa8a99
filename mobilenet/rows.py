"""Rows of a CSV file, and JSON beside it: how every result of the project is kept."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilenet.rundir import write_atomically


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; none if it does not exist."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def replace(
    path: Path, fields: Sequence[str], made: Sequence[Mapping[str, Any]], *, by: str
) -> None:
    """Puts rows into a CSV file in place of those that have their value of the column `by`.

    The file is sorted by that column; rows of one value stay in the order given.
    """
    values = {str(row[by]) for row in made}
    others = [row for row in read(path) if row[by] not in values]
    write(path, fields, sorted([*others, *made], key=lambda row: str(row[by])))


def write(path: Path, fields: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Replaces a CSV file by rows, in their order, atomically; ValueError for an unknown field."""
    text = io.StringIO()
    writer: Any = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
