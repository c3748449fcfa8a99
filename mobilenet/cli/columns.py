"""Tables on a terminal: how wide it is, and text cut or padded to a column.

Columns are counted in the cells of a terminal, of which some characters take two.
"""

import shutil

from rich.cells import cell_len, set_cell_size

from mobilenet.terminal import printable

MARK = ".."  # where text was cut; every encoding has it


def width() -> int:
    """Columns of the terminal, from `COLUMNS` or the system; 80 where there is none."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def size(text: object) -> int:
    """The columns that a text takes."""
    return cell_len(printable(text))


def fit(text: object, columns: int, *, keep_end: bool = False) -> str:
    """The text in one line of exactly so many columns: padded, or cut and marked by "..".

    Args:
      text: of any characters; those that a terminal would obey are written as `\\x1b`.
      columns: 3 or more.
      keep_end: cut the beginning off, as for a path, whose end tells more.
    """
    shown = printable(text)
    if cell_len(shown) <= columns:
        return set_cell_size(shown, columns)
    if not keep_end:
        return set_cell_size(shown, columns - len(MARK)) + MARK
    while cell_len(shown) > columns - len(MARK):
        shown = shown[1:]
    return set_cell_size(MARK + shown, columns)
