"""The page of parity: networks of other projects, and their weights."""

from collections.abc import Sequence
from pathlib import Path

from mobilenet.report import pretrained
from mobilenet.report.pages import blocks
from mobilenet.report.pages.blocks import Grid, Line, Page, Row, Section

TOLERANCE = 1e-4  # as `python -m mobilenet.benchmark.parity` has it


def page(directory: Path) -> Page:
    """The page, from the rows in experiments/results."""
    logits = pretrained.PARITY.rows(directory)
    accuracies = pretrained.ACCURACY.rows(directory)
    sections = []
    if logits:
        sections.append(_logits(logits))
    if accuracies:
        sections.append(_accuracies(accuracies))
    return Page(
        title="Parity: is it the network of the other projects?",
        question=(
            "Given the weights of torchvision, timm, Hugging Face, Keras or TFLite, does this "
            "project's network compute what theirs computes?"
        ),
        base=(
            "MobileNetV2 of other projects: random weights drawn for each case, and published int8 "
            "files on photographs. No accuracy of ours is at stake."
        ),
        registered=(
            f"{len(logits)} cases of width and resolution, each with a tolerance of "
            f"{TOLERANCE:g} for the largest difference of a logit; {len(accuracies)} converted "
            "files next to the file itself in its own runtime."
        ),
        conclusion=(*_agreement(logits), *map(_converted, accuracies)) or ("Nothing was run.",),
        sections=tuple(sections),
        legend=(
            "The Wilson interval over images says how far other images would move an accuracy. A "
            "converted int8 file computes in float here, so its classes may differ from the "
            "integer file's; exports.md compares integers."
        ),
    )


def worst(rows: Sequence[Row]) -> Row:
    """The case with the largest difference."""
    return max(rows, key=lambda row: float(row["max_abs_difference"]))


def _agreement(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    found = worst(rows)
    frameworks = list(dict.fromkeys(row["framework"] for row in rows))
    scale = max(float(row["logits_scale"]) for row in rows)
    agreeing = sum(float(row["max_abs_difference"]) <= TOLERANCE for row in rows)
    return [
        f"In {agreeing} of {len(rows)} cases of {len(frameworks)} projects the logits agree: the "
        f"largest difference of a logit is {float(found['max_abs_difference']):.1e} "
        f"({found['framework']}, width {found['width']}, {found['resolution']} pixels), of "
        f"logits up to {scale:.1f}."
    ]


def _converted(row: Row) -> str:
    accuracy = blocks.value(row["top1"], row["low"], row["high"])
    said = f"{row['row']}: {accuracy} % top-1 (95 % Wilson, n = {row['examples']} images)"
    if not row["published_top1"]:
        return f"{said}."
    gap = float(row["top1"]) - float(row["published_top1"])
    return f"{said}, {gap:+.1f} points from {row['published_top1']} % of {row['published_source']}."


def _logits(rows: Sequence[Row]) -> Section:
    sizes = sorted({row["resolution"] for row in rows}, key=int)
    groups: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((row["framework"], row["width"]), {})[row["resolution"]] = row
    lines = [
        Line(
            (
                framework,
                width,
                *(
                    f"{float(mine[size]['max_abs_difference']):.1e}" if size in mine else "–"
                    for size in sizes
                ),
                f"{max(float(row['logits_scale']) for row in mine.values()):.1f}",
            ),
            tuple(mine.values()),
        )
        for (framework, width), mine in groups.items()
    ]
    heads = ("project", "width", *(f"at {size} px" for size in sizes), "logits up to")
    versions = dict.fromkeys(row["versions"] for row in rows)
    return Section(
        heading="Largest difference of a logit, random weights",
        text=("97 pixels test the padding of odd sizes.",) if "97" in sizes else (),
        grids=(Grid(heads, tuple(lines)),),
        notes=tuple(f"{text}." for text in versions),
        source=blocks.source(pretrained.PARITY),
    )


def _accuracies(rows: Sequence[Row]) -> Section:
    lines = []
    for row in rows:
        gap = "–"
        if row["published_top1"]:
            points = float(row["top1"]) - float(row["published_top1"])
            gap = f"{row['published_top1']} ({points:+.1f})"
        accuracy = blocks.value(row["top1"], row["low"], row["high"])
        lines.append(Line((row["row"], accuracy, row["top5"], gap, row["examples"]), (row,)))
    heads = ("weights", "top-1 % [95 % Wilson]", "top-5 %", "original's top-1 (points)", "images")
    return Section(
        heading="Published weights, converted, on photographs",
        grids=(Grid(heads, tuple(lines)),),
        notes=blocks.remarks(rows),
        source=blocks.source(pretrained.ACCURACY),
    )
