"""The pages of single recipes: baselines, and transfer to a folder of images."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from mobilenet.analysis import stats
from mobilenet.report import networks, results
from mobilenet.report.pages import blocks
from mobilenet.report.pages.blocks import Grid, Line, Page, Row, Section


def baselines(directory: Path) -> Page:
    """The page of baselines, from the rows and logs in experiments/results."""
    rows = results.TABLES["baselines"].rows(directory)
    weak = [row for row in rows if float(row["top1_mean"]) < blocks.LEARNT]
    named = ", ".join(f"`{row['row']}`" for row in weak)
    return Page(
        title="Baselines: do the recipes reach what is published?",
        question="How accurate are the recipes that the other experiments start from?",
        base=f"{_networks(directory, rows)}.",
        registered="None: a baseline stands next to a published figure, without a verdict.",
        conclusion=tuple(_reached(directory, row) for row in rows),
        sections=(
            Section(
                heading="Baselines",
                grids=(_grid(directory, rows, _published, "published (difference)"),),
                notes=_notes(rows),
                source=blocks.source(results.TABLES["baselines"], "logs/baselines"),
            ),
        ),
        caution=(
            f"{named} was trained for a few epochs and has not learnt what its data allow: it "
            f"{blocks.PIPELINE}."
            if weak
            else ""
        ),
        legend="The ImageNet recipes have not been run by this project.",
    )


def transfer(directory: Path) -> Page:
    """The page of transfer, from the rows and logs in experiments/results."""
    rows = results.TABLES["transfer"].rows(directory)
    best = max(rows, key=lambda row: float(row["top1_mean"]))
    others = [row for row in rows if row is not best]
    interval = networks.interval(directory, best)
    network = networks.describe(networks.runs_of(directory, best)[0])
    differences = {other["row"]: between(directory, best, other) for other in others}
    return Page(
        title="Transfer: what do pretrained weights buy on few images?",
        question=(
            "How accurate is a pretrained network on a small folder of photographs: all layers "
            "trained on, the classifier alone, or everything from scratch?"
        ),
        base=f"{network}: {accuracy(interval)} for `{best['row']}`.",
        registered=("None before the runs; paired differences are shown without a verdict."),
        conclusion=(
            f"`{best['row']}` is the most accurate: {accuracy(interval)}.",
            *(
                f"`{best['row']}` minus `{name}`: {signed(found)} points (95 % t-interval, "
                f"n = {found.n} seeds)."
                for name, found in differences.items()
                if found is not None
            ),
        ),
        sections=(
            Section(
                heading="Ways to train",
                grids=(
                    _grid(
                        directory,
                        rows,
                        lambda row: signed(differences[row["row"]], -1) if row != best else "–",
                        f"minus {best['row']}, points [95 % t]",
                    ),
                ),
                notes=_notes(rows),
                source=blocks.source(results.TABLES["transfer"], "logs/transfer"),
            ),
        ),
        legend=(
            "The interval over seeds says how far other initial values and another order would "
            "move the result, not other images. The recipes differ in more than what is trained; "
            "the CSV has their overrides."
        ),
    )


def between(directory: Path, first: Row, second: Row) -> stats.Interval | None:
    """The paired difference of two rows in points, from their logs; None without common seeds."""
    return networks.between(networks.top1(directory, first), networks.top1(directory, second))


def signed(found: stats.Interval | None, sign: int = 1) -> str:
    """A difference and its interval, "–" without one; `sign` -1 turns it round."""
    if found is None:
        return "–"
    ends = sorted((sign * found.low, sign * found.high))
    known = not math.isnan(found.low)
    return f"{sign * found.mean:+.2f}" + (f" [{ends[0]:+.2f}, {ends[1]:+.2f}]" if known else "")


def accuracy(found: stats.Interval) -> str:
    """An accuracy in a sentence."""
    if math.isnan(found.low):
        return f"{found.mean:.2f} % (n = {found.n} seed, no interval)"
    return (
        f"{found.mean:.2f} % top-1 [{found.low:.2f}, {found.high:.2f}] (95 % t-interval, "
        f"n = {found.n} seeds)"
    )


def _networks(directory: Path, rows: Sequence[Row]) -> str:
    return "; ".join(
        f"`{row['row']}`: {networks.describe(networks.runs_of(directory, row)[0])}" for row in rows
    )


def _reached(directory: Path, row: Row) -> str:
    said = f"`{row['row']}` reaches {accuracy(networks.interval(directory, row))}"
    if not row["published_top1"]:
        return f"{said} after {row['epochs']} epochs."
    gap = float(row["top1_mean"]) - float(row["published_top1"])
    return (
        f"{said} after {row['epochs']} epochs, {gap:+.2f} points from the published "
        f"{row['published_top1']} % ({row['published_source']})."
    )


def _published(row: Row) -> str:
    if not row["published_top1"]:
        return "–"
    gap = float(row["top1_mean"]) - float(row["published_top1"])
    return f"{row['published_top1']} ({gap:+.2f})"


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(f"`{row['row']}`: {row['remarks']}." for row in rows if row["remarks"])


def _grid(directory: Path, rows: Sequence[Row], cell: Callable[[Row], str], head: str) -> Grid:
    lines = []
    for row in rows:
        found = networks.interval(directory, row)
        ends = f" [{found.low:.2f}, {found.high:.2f}]" if found.n > 1 else ""
        cells = (
            f"`{row['row']}`",
            f"{found.mean:.2f}{ends}",
            str(found.n),
            cell(row),
            blocks.thousands(row["params"]),
            f"{row['train_examples']} x {row['epochs']}",
        )
        lines.append(Line(cells, (row,)))
    return Grid(
        ("run", "top-1 % [95 % t over seeds]", "n", head, "params", "images x epochs"),
        tuple(lines),
    )
