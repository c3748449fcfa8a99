"""Parts that the pages of quantisation and compression share: variants next to their baselines."""

from collections.abc import Callable, Mapping, Sequence

from mobilenet.analysis import stats
from mobilenet.report import variants
from mobilenet.report.pages import blocks
from mobilenet.report.pages.blocks import Grid, Line, Row
from mobilenet.terminal import counted

Cells = Mapping[str, Callable[[Row], str]]


def over_seeds(rows: Sequence[Row]) -> Grid:
    """Variants that were trained with several seeds, and how far they are from their baselines.

    Args:
      rows: of one experiment; those of a single run are left out. Without any baseline there are no
        columns for differences.
    """
    compared = any(row["baseline"] for row in rows)
    mine = [row for row in rows if row["interval"] == variants.SEEDS]
    head, apart = blocks.with_n("top-1 % [95 % t over seeds]", mine)
    heads = ["variant", head]
    if compared:
        heads += ["baseline", "difference, points [95 % t]", "verdict"]
    lines = [
        Line(
            (
                row["variant"],
                blocks.value(row["top1"], row["low"], row["high"]),
                *(
                    (row["baseline"] or "–", blocks.difference(row), blocks.verdict(row))
                    if compared
                    else ()
                ),
                *([str(blocks.count(row))] * apart),
            ),
            (row,),
        )
        for row in mine
    ]
    return Grid(tuple([*heads, "n"] if apart else heads), tuple(lines))


def over_images(rows: Sequence[Row]) -> Grid:
    """Variants of a single run: intervals speak of other images; differences have none.

    Args:
      rows: of one experiment; those of several seeds are left out.
    """
    mine = [row for row in rows if row["interval"] == variants.IMAGES]
    heads = (
        "variant",
        f"top-1 % [95 % Wilson over {blocks.several(mine, 'examples')} images]",
        "baseline",
        "difference, points (n = 1 run, no interval)",
    )
    lines = [
        Line(
            (
                row["variant"],
                blocks.value(row["top1"], row["low"], row["high"]),
                row["baseline"] or "–",
                blocks.difference(row),
            ),
            (row,),
        )
        for row in mine
    ]
    return Grid(heads, tuple(lines))


def on_images(row: Row, other: Row) -> tuple[float, float, float]:
    """The difference of two single runs with Newcombe's interval over images, in points."""
    pairs = []
    for each in (row, other):
        examples = int(each["examples"])
        pairs.append((round(float(each["top1"]) * examples / 100), examples))
    middle, low, high = (100 * part for part in stats.unpaired_difference(*pairs))
    return middle, low, high


def from_float(rows: Sequence[Row], baseline: Row) -> Grid:
    """Variants of one network on the same images, next to its float form.

    Args:
      rows: of single runs.
      baseline: the row of the float network.
    """
    head = f"top-1 % [95 % Wilson, n = {blocks.several(rows, 'examples')} images]"
    lines = []
    for row in rows:
        apart = "–"
        if row is not baseline:
            middle, low, high = on_images(row, baseline)
            apart = f"{middle:+.2f} [{low:+.2f}, {high:+.2f}]"
        accuracy = blocks.value(row["top1"], row["low"], row["high"])
        lines.append(Line((row["variant"], accuracy, apart), (row,)))
    return Grid(("variant", head, "minus float, points [95 % Newcombe, same images]"), tuple(lines))


def costs(rows: Sequence[Row], cells: Cells) -> Grid:
    """What variants cost: a column for each of `cells` that any row has."""
    shown = {head: cell for head, cell in cells.items() if any(cell(row) != "–" for row in rows)}
    return Grid(
        ("variant", *shown),
        tuple(
            Line((row["variant"], *(cell(row) for cell in shown.values())), (row,)) for row in rows
        ),
    )


def experiments(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Experiment -> its rows, in their order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["experiment"], []).append(row)
    return found


def registered(rows: Sequence[Row]) -> str:
    """How many comparisons `baselines()` of each experiment file named."""
    parts = []
    for name, mine in experiments(rows).items():
        number = sum(bool(row["baseline"]) for row in mine)
        parts.append(f"{number or 'none'} in `{name}`")
    return (
        f"{', '.join(parts)}; `baselines()` of the experiment files names them before anything "
        "runs."
    )


def find(rows: Sequence[Row], experiment: str, variant: str) -> Row | None:
    """The row of a variant; None if it is not committed."""
    return blocks.find(rows, {"experiment": experiment, "variant": variant})


def sentence(row: Row | None, what: str) -> list[str]:
    """ "WHAT: +1.78 points [+1.56, +2.01], n = 3 seeds, higher." of a row; none without one."""
    if row is None or not row["difference"]:
        return []
    number = blocks.count(row)
    judged = blocks.verdict(row)
    return [
        f"{what}: `{row['variant']}` minus `{row['baseline']}` is {blocks.difference(row)} points "
        f"(n = {counted(number, 'seed')}, {judged})."
    ]
