"""The page of speed: steps of this project next to other implementations."""

from collections.abc import Sequence
from pathlib import Path

from mobilenet.report import benchmarks
from mobilenet.report.pages import blocks
from mobilenet.report.pages.blocks import Grid, Line, Page, Row, Section

RATIO = "other's time / this project's (range)"
MEMORY = ", not kept"


def page(directory: Path) -> Page:
    """The page, from the rows in experiments/results."""
    rows = benchmarks.TABLE.rows(directory)
    groups = by_case(rows)
    parts = {"others": "Next to other implementations", "own": "What options of this project cost"}
    sections = [
        Section(
            heading=f"{heading}: {processor}",
            grids=(_ratios([pair for pair in _pairs(groups, processor) if _kind(pair) == kind]),),
            source=blocks.source(benchmarks.TABLE),
        )
        for processor in dict.fromkeys(row["processor"] for row in rows)
        for kind, heading in parts.items()
        if any(_kind(pair) == kind for pair in _pairs(groups, processor))
    ]
    alone = [group[0] for group in groups if len(group) == 1]
    if alone:
        sections.append(
            Section(
                heading="Batch size and width, this project alone",
                grids=(_alone(alone),),
                source=blocks.source(benchmarks.TABLE),
            )
        )
    model = next((row for row in rows if row["case"] == "train_224"), rows[0])
    return Page(
        title="Speed: how long do steps take, next to other implementations?",
        question=(
            "How long do training and evaluation take next to PyTorch and plain Flax, and what do "
            "quantisers, masks and rematerialisation add?"
        ),
        base=(
            f"MobileNetV2, width {model['model']}, {blocks.thousands(model['params'])} parameters, "
            f"{blocks.million(model['macs'])} MACs at {model['image_size']} pixels. Speed does not "
            "depend on its accuracy; all implementations of a case start from the same weights, "
            "and their first losses must agree."
        ),
        registered=(
            f"{sum(len(group) - 1 for group in groups)} ratios of {len(groups)} cases, which "
            "`cases()` of experiments/benchmarks names."
        ),
        conclusion=tuple(_conclusion(rows)) or ("No case is complete.",),
        sections=tuple(sections),
        figures=blocks.figures(
            directory, {"benchmark.svg": "Time of a step against batch and MACs, and ratios"}
        ),
        legend=(
            "Each implementation runs in a process of its own, in alternating turns. A ratio is "
            "taken within a round; above 1 this project is faster. The range is of the fastest "
            "and the slowest round, no confidence interval; n counts rounds. "
            '"Not kept": memory went back to the system between steps. Compilation, '
            "memory and the number of images per second are in the CSV."
        ),
    )


def by_case(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each case and processor, those of this project first."""
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cases.setdefault((row["case"], row["processor"]), []).append(row)
    return list(cases.values())


def _pairs(groups: Sequence[Sequence[Row]], processor: str) -> list[tuple[Row, Row]]:
    return [
        (group[0], other)
        for group in groups
        for other in group[1:]
        if other["processor"] == processor
    ]


def _kind(pair: tuple[Row, Row]) -> str:
    return "own" if pair[1]["implementation"] in benchmarks.VARIANTS else "others"


def ratio(row: Row) -> str:
    """A ratio with the range over rounds."""
    middle, low, high = (float(row[f"ratio{end}"]) for end in ("", "_low", "_high"))
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def _step(row: Row) -> str:
    note = MEMORY if row["memory"] != "kept" and row["work"] != "input" else ""
    return f"{row['work']}, {row['image_size']} px, batch {row['batch_size']}{note}"


def _time(row: Row) -> str:
    milliseconds = 1e3 * float(row["seconds"])
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def _ratios(pairs: Sequence[tuple[Row, Row]]) -> Grid:
    return Grid(
        ("step", "model", "this project, ms", "other", RATIO, "n"),
        tuple(
            Line(
                (
                    _step(ours),
                    ours["model"],
                    _time(ours),
                    benchmarks.LABELS[other["implementation"]],
                    ratio(other),
                    other["rounds"],
                ),
                (ours, other),
            )
            for ours, other in pairs
        ),
    )


def _alone(rows: Sequence[Row]) -> Grid:
    return Grid(
        ("step", "model", "ms", "ms, range", "n", "processor"),
        tuple(
            Line(
                (
                    _step(row),
                    row["model"],
                    _time(row),
                    f"{1e3 * float(row['seconds_low']):,.0f}–"
                    f"{1e3 * float(row['seconds_high']):,.0f}",
                    row["rounds"],
                    row["processor"],
                ),
                (row,),
            )
            for row in rows
        ),
    )


def _conclusion(rows: Sequence[Row]) -> list[str]:
    sentences = []
    for case, implementation, what in (
        ("train_224", "torch", "A training step at 224 pixels and batch 16 takes PyTorch eager"),
        ("evaluate_224_1", "torch_compile", "Evaluation of one image takes torch.compile"),
        ("evaluate_224_16", "torch_compile", "Evaluation of 16 images takes torch.compile"),
        ("train_224_plain", "flax", "A training step takes plain Flax"),
    ):
        for row in rows:
            if (row["case"], row["implementation"]) == (case, implementation):
                sentences.append(
                    f"{what} {float(row['ratio']):.2f} times as long as this project (range "
                    f"{float(row['ratio_low']):.2f} to {float(row['ratio_high']):.2f} over "
                    f"n = {row['rounds']} rounds, {row['processor']})."
                )
                break
    return sentences
