"""The page of quantisation: bits, grids, networks, mixed precision, and ImageNet weights."""

from collections.abc import Sequence
from pathlib import Path

from mobilenet.report import networks, variants
from mobilenet.report.pages import blocks, treatments
from mobilenet.report.pages.blocks import Page, Row, Section

TABLE = variants.TABLES["quantization"].table
HEADINGS = {
    "bits": "Bits of weights and activations",
    "granularity": "One scale per channel or per tensor, symmetric or affine",
    "imagenet": "Published ImageNet weights, 8 bits, without training",
    "mixed": "Mixed precision: more bits where the network is sensitive",
    "networks": "ReLU or ReLU6, squeeze-and-excitation, width",
}


def page(directory: Path) -> Page:
    """The page, from the rows and logs in experiments/results."""
    rows = TABLE.rows(directory)
    floats = [row for row in rows if _is_float(row)]
    weak = [row for row in floats if row["experiment"] != "imagenet" and blocks.of_cifar(row)]
    return Page(
        title="Quantisation: what do fewer bits cost, and what repairs it?",
        question=(
            "What do fewer bits cost when a finished network is rounded (PTQ), what does training "
            "with rounding repair (QAT), and which of the published remedies work here?"
        ),
        base=_base(directory, rows),
        registered=treatments.registered(rows),
        conclusion=(*_imagenet(rows), *_cifar(rows)) or ("No comparison is complete.",),
        sections=tuple(_section(name, mine) for name, mine in treatments.experiments(rows).items()),
        figures=blocks.figures(
            directory,
            {
                "05_imagenet.svg": "ImageNet weights at 8 bits, by grid and remedy",
                "05_cifar.svg": "Accuracy by bits, rounded after training or trained",
                "sensitivity_weights_cifar.svg": "What is lost when one layer alone has few bits",
            },
        ),
        caution=blocks.caution("The CIFAR-10 networks", [float(row["top1"]) for row in weak]),
        legend=(
            f"{blocks.VERDICTS} w4a8: weights of 4 bits, activations of 8. PTQ: rounded after "
            "training. QAT: trained with rounding. LSQ: learned steps. Least error: ranges of "
            "least squared error. Variants that were trained have intervals over seeds. Variants "
            "that were rounded once have intervals over images, which say how far another set of "
            "test images would move them; they stand in a table of their own."
        ),
    )


def _is_float(row: Row) -> bool:
    return row["variant"].startswith("float") or row["variant"].endswith(", float")


def _base(directory: Path, rows: Sequence[Row]) -> str:
    parts = []
    for name in ("bits", "imagenet"):
        row = treatments.find(rows, name, "float")
        if row is None:
            continue
        accuracy = blocks.value(row["top1"], row["low"], row["high"])
        what = (
            networks.describe(networks.runs_of(directory, row)[0])
            if name == "bits"
            else "published weights"
        )
        parts.append(
            f"`{name}`: {what}, {accuracy} % top-1 in float (95 % Wilson interval over "
            f"{int(row['examples']):,} test images)"
        )
    return (
        f"{'; '.join(parts)}. `granularity` and `mixed` share "
        "the network of `bits`; `networks` has one for each of its networks."
    )


def _imagenet(rows: Sequence[Row]) -> list[str]:
    """How one scale per tensor ruins ImageNet weights, and what repairs them."""
    names = ("float", "w8, per tensor", "w8, per tensor, equalised below 6, corrected")
    names += ("w8, per channel",)
    found = [treatments.find(rows, "imagenet", name) for name in names]
    known = [row for row in found if row is not None]
    if len(known) < len(names):
        return []
    baseline, *others = known
    ruined, repaired, channel = (
        "{:+.1f} points [{:+.1f}, {:+.1f}]".format(*treatments.on_images(row, baseline))
        for row in others
    )
    return [
        "On published ImageNet weights, rounding the weights to 8 bits with one scale per tensor "
        f"changes top-1 by {ruined}; with equalisation and bias correction by {repaired}; with one "
        f"scale per channel by {channel} (95 % Newcombe intervals, n = {baseline['examples']} "
        "images)."
    ]


def _cifar(rows: Sequence[Row]) -> list[str]:
    sentences = []
    for experiment, variant, what in (
        ("bits", "QAT w8a8, extremes", "8 bits, trained"),
        ("bits", "QAT w4a4, extremes", "4 bits for both, trained"),
        ("bits", "QAT w4a4, LSQ", "Learned steps at 4 bits for both"),
        ("bits", "QAT w2a8, LSQ", "Learned steps at 2-bit weights"),
        ("mixed", "QAT, mixed, 3 bits", "Mixed precision at 3 bits, trained"),
        ("mixed", "PTQ, mixed, 3 bits", "Mixed precision at 3 bits, rounded"),
    ):
        sentences += treatments.sentence(treatments.find(rows, experiment, variant), what)
    return sentences


def _section(name: str, rows: Sequence[Row]) -> Section:
    compared = any(row["baseline"] for row in rows)
    baseline = treatments.find(rows, name, "float")
    several = treatments.over_seeds(rows)
    single = [row for row in rows if row["interval"] == variants.IMAGES]
    text: list[str] = []
    if not compared and baseline is not None:
        grid = treatments.from_float(single, baseline)
        text.append(
            "No comparison was registered: differences are shown without a verdict. The Newcombe "
            "interval takes the variants as tested on images of their own. All saw the same "
            "images, so that a paired interval would usually be narrower."
        )
    else:
        grid = treatments.over_images(rows)
    return Section(
        heading=f"{HEADINGS.get(name, name)} (`{name}`)",
        text=tuple(text),
        grids=tuple(each for each in (several, grid) if each.lines),
        notes=blocks.remarks(rows),
        source=blocks.source(TABLE, rows[0]["logs"], rows[0]["config"]),
    )
