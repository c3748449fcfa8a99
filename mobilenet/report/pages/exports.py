"""The page of exported files: runtimes, integer executor, LiteRT."""

from collections.abc import Sequence
from pathlib import Path

from mobilenet.report import deployments
from mobilenet.report.pages import blocks, treatments
from mobilenet.report.pages.blocks import Grid, Line, Page, Row, Section


def page(directory: Path) -> Page:
    """The page, from the rows in experiments/results."""
    files = deployments.EXPORTS.rows(directory)
    executor = deployments.EXECUTOR.rows(directory)
    networks = [row for row in executor if row["part"] == "network"]
    floats = [row for row in files if row["weight_bits"] == "0"]
    sections = [_files(name, mine) for name, mine in treatments.experiments(files).items()]
    if executor:
        sections += [_executor(networks), _operations(executor)]
    experiments = [
        f"`{name}`: {mine[0]['top1_jax']} % top-1 in JAX (n = {int(mine[0]['examples']):,} images)"
        for name, mine in treatments.experiments(floats).items()
    ]
    weak = [float(row["top1_jax"]) for row in floats if row["experiment"] == "cifar"]
    return Page(
        title="Exports: do the files compute what the network computes?",
        question=(
            "Does an exported file classify as the network in JAX does, and does the integer "
            "executor compute LiteRT's codes?"
        ),
        base=f"{'; '.join(experiments) or 'published int8 files of others'}.",
        registered=(
            f"{len(files)} runtimes of exported files with JAX, and {len(networks)} pairings of "
            "the integer executor with LiteRT: equality is asked for, not an accuracy."
        ),
        conclusion=(*_agreement(files), *_equality(networks)) or ("No file was verified.",),
        sections=tuple(sections),
        caution=blocks.caution("The networks of `cifar`", weak) if files else "",
        legend=(
            "A code is an integer output of a quantised operation. The Wilson interval over "
            "images says how far another set of test images would move an accuracy. Sizes in "
            "bytes are in the CSV. Times are of one image on one thread of the processor that the "
            "CSV names, which is not a phone's."
        ),
    )


def _agreement(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    exact = [row for row in rows if row["weight_bits"] == "0"]
    integer = [row for row in rows if row["weight_bits"] != "0"]
    sentences = []
    for what, mine in (("float", exact), ("quantised", integer)):
        if mine:
            shares = [float(row["agreement"]) for row in mine]
            sizes = sorted({int(row["examples"]) for row in mine})
            images = " or ".join(f"{size:,}" for size in sizes)
            sentences.append(
                f"The {len(mine)} runtimes of {what} files choose JAX's class for "
                f"{blocks.span(shares)} % of the images (n = {images})."
            )
    return [" ".join(sentences)]


def _equality(rows: Sequence[Row]) -> list[str]:
    same = [row for row in rows if (row["kernels"], row["rounding"]) == ("builtin", "builtin")]
    if not same:
        return []
    least = min(float(row["equal"]) for row in same)
    largest = max(int(row["largest"]) for row in same)
    return [
        f"With the rounding of LiteRT's built-in kernels, {100 * least:.2f} % of the integer "
        f"executor's codes of logits equal LiteRT's in {len(same)} published networks (n = "
        f"{same[0]['images']} images each); the largest difference is {largest} codes."
    ]


def _files(name: str, rows: Sequence[Row]) -> Section:
    size = blocks.several(rows, "examples")
    lines = []
    for row in rows:
        codes = "–"
        if row["equal_codes"]:
            codes = f"{100 * float(row['equal_codes']):.3f} ({row['largest']})"
        times = [float(row[f"latency_ms_{end}"]) for end in ("median", "min", "p90")]
        cells = (
            row["file"],
            row["runtime"],
            blocks.value(row["top1"], row["low"], row["high"]),
            row["agreement"],
            codes,
            f"{times[0]:.2f} ({times[1]:.2f}–{times[2]:.2f})",
        )
        lines.append(Line(cells, (row,)))
    heads = (
        "file",
        "runtime",
        "top-1 % [95 % Wilson]",
        "JAX's class, %",
        "codes as executor, % (largest)",
        "ms (least–90 %)",
    )
    return Section(
        heading=f"Exported files (`{name}`)",
        text=(
            f"n = {size} images of the {rows[0]['split']} split. In JAX: "
            f"{blocks.span([float(row['top1_jax']) for row in rows])} % top-1.",
        ),
        grids=(Grid(heads, tuple(lines)),),
        notes=blocks.remarks(rows),
        source=blocks.source(deployments.EXPORTS, rows[0]["logs"]),
    )


def _short(file: str) -> str:
    return file.removesuffix(".tflite")


def _executor(rows: Sequence[Row]) -> Section:
    lines = []
    for row in rows:
        same = round(float(row["top1_agreement"]) * int(row["images"]))
        cells = (
            _short(row["file"]),
            f"{row['rounding']} / {row['kernels']}",
            f"{same} of {row['images']}",
            f"{100 * float(row['equal']):.2f}",
            f"{row['largest']} ({float(row['largest_real']):.2f})",
            f"{float(row['top1']):.1f} / {float(row['litert_top1']):.1f}",
        )
        lines.append(Line(cells, (row,)))
    heads = ("file", "rounding / kernels", "same class", "equal codes, %")
    heads += ("largest: codes (logit)", "top-1 %, ours / LiteRT")
    return Section(
        heading="The integer executor and LiteRT: whole networks",
        text=(
            "Published int8 networks of others, in the executor (`rounding`: LiteRT's own, or the "
            "executor's default) and in LiteRT (its two sets of `kernels`). LiteRT's two sets "
            "differ from each other as well.",
        ),
        grids=(Grid(heads, tuple(lines)),),
        source=blocks.source(deployments.EXECUTOR),
    )


def _operations(rows: Sequence[Row]) -> Section:
    mine = [row for row in rows if row["part"] != "network"]
    heads = ("file", "operation", "rounding", "images", "equal codes, %", "largest, codes")
    lines = tuple(
        Line(
            (
                _short(row["file"]),
                row["part"],
                row["rounding"],
                row["images"],
                f"{100 * float(row['equal']):.3f}",
                row["largest"],
            ),
            (row,),
        )
        for row in mine
    )
    return Section(
        heading="The integer executor and LiteRT: each operation",
        text=("Each operation is given LiteRT's own inputs; LiteRT runs its built-in kernels.",),
        grids=(Grid(heads, lines),),
        source=blocks.source(deployments.EXECUTOR),
    )
