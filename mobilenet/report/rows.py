"""Rows of a CSV file, and JSON next to it: how every result of the project is kept."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilenet.rundir import FileError, read_bytes, write_atomically


def read(path: Path, fields: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of a CSV file; none if it does not exist.

    Args:
      path: of the file.
      fields: columns that it must have.

    Raises:
      FileError: the file is no table, lacks a column, or has a row of another length.
      RunDirectoryError: it cannot be read.
    """
    content = read_bytes(path)
    if content is None:
        return []
    try:
        # Spreadsheets write a mark before the first column's name.
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
        table = [row for row in csv.reader(text) if row]
    except (ValueError, csv.Error) as error:
        raise FileError(path, f"is no CSV table: {error}", _REPAIR) from error
    if not table:
        raise FileError(path, "is empty", _REPAIR)
    header, *rows = table
    missing = [field for field in fields if field not in header]
    if missing:
        raise FileError(path, f"has no column {', '.join(missing)}", _REPAIR)
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            what = f"is damaged: row {number} has {len(row)} values for {len(header)} columns"
            raise FileError(path, what, _REPAIR)
    return [dict(zip(header, row, strict=True)) for row in rows]


_REPAIR = "restore it from a copy, or delete it and make it again"


def replace(
    path: Path, fields: Sequence[str], made: Sequence[Mapping[str, Any]], *, by: str
) -> None:
    """Puts rows into a CSV file in place of those that have their value of the column `by`.

    The file is sorted by that column; rows of one value stay in the order given.

    Raises:
      FileError: the file that is there is damaged.
    """
    values = {str(row[by]) for row in made}
    others = [row for row in read(path, [by]) if row[by] not in values]
    write(path, fields, sorted([*others, *made], key=lambda row: str(row[by])))


def write(path: Path, fields: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Replaces a CSV file by rows, in their order, atomically; ValueError for an unknown field."""
    text = io.StringIO()
    writer: Any = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
