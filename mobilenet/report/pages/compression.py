"""The page of compression: zeros, fewer channels, a teacher."""

from collections.abc import Sequence
from pathlib import Path

from mobilenet.report import networks, variants
from mobilenet.report.pages import blocks, treatments
from mobilenet.report.pages.blocks import Page, Row, Section

TABLE = variants.TABLES["compression"].table
HEADINGS = {
    "budgets": "Fewer channels: cut, or narrow from the start",
    "distillation": "A teacher: temperature and weight",
    "pruning": "Zeros: sparse weights next to small dense networks",
}
COSTS: treatments.Cells = {
    "zeros, %": lambda row: row["sparsity"],
    "weights that are not 0": lambda row: blocks.thousands(row["nonzero_params"]),
    "MACs": lambda row: f"{int(row['macs']) / 1e6:.2f} M",
    "MACs not by 0": lambda row: f"{int(row['nonzero_macs']) / 1e6:.2f} M",
    "ms, one image": lambda row: f"{float(row['latency_ms']):.2f}" if row["latency_ms"] else "–",
}


def page(directory: Path) -> Page:
    """The page, from the rows and logs in experiments/results."""
    rows = TABLE.rows(directory)
    dense = next((row for row in rows if row["variant"].startswith("dense")), rows[0])
    network = networks.describe(networks.runs_of(directory, dense)[0])
    return Page(
        title="Compression: zeros, fewer channels, or a teacher?",
        question=(
            "What do zeros, fewer channels and a teacher buy, next to a dense network that has "
            "this size from the start?"
        ),
        base=(
            f"{network}, {dense['train_examples']} training images x "
            f"{dense['epochs']} epochs (`{dense['variant']}`): "
            f"{blocks.value(dense['top1'], dense['low'], dense['high'])} % top-1 (95 % t-interval "
            f"over {blocks.count(dense)} seeds, {int(dense['examples']):,} test images)."
        ),
        registered=treatments.registered(rows),
        conclusion=tuple(_conclusion(rows)) or ("No comparison is complete.",),
        sections=tuple(_section(name, mine) for name, mine in treatments.experiments(rows).items()),
        figures=blocks.figures(
            directory,
            dict.fromkeys(
                variants.by_figure("compression", rows),
                "Accuracy of dense and compressed networks against their cost",
            ),
        ),
        caution=blocks.caution("These networks", [float(dense["top1"])]),
        legend=(
            f"{blocks.VERDICTS} Zeros make a file smaller when it is stored sparse; no kernel "
            "here skips single zeros, so the time per image stays. File sizes are in the CSV."
        ),
    )


def _conclusion(rows: Sequence[Row]) -> list[str]:
    found = [treatments.find(rows, "pruning", name) for name in ("50 %", "75 %", "90 %")]
    pruned = [row for row in found if row is not None and row["difference"]]
    sentences = []
    if pruned:
        losses = "; ".join(f"{row['variant']}: {blocks.difference(row)}" for row in pruned)
        sentences.append(
            f"Zeros after training change top-1, in points from the dense network: {losses} "
            f"(n = {blocks.count(pruned[0])} seeds)."
        )
    for experiment, variant, what in (
        ("pruning", "width for 90 %", "Small and dense at 90 %"),
        ("pruning", "75 %, from scratch", "Large and sparse at 75 %, pruned while it is trained"),
        ("budgets", "cut, 55 %", "Cut channels and a narrow network of equal MACs"),
    ):
        sentences += treatments.sentence(treatments.find(rows, experiment, variant), what)
    taught = [row for row in rows if row["experiment"] == "distillation" and row["difference"]]
    if taught:
        best = max(taught, key=lambda row: float(row["difference"]))
        sentences += treatments.sentence(
            best, f"The largest of {len(taught)} differences by a teacher"
        )
    return sentences


def _section(name: str, rows: Sequence[Row]) -> Section:
    return Section(
        heading=f"{HEADINGS.get(name, name)} (`{name}`)",
        grids=tuple(
            grid
            for grid in (
                treatments.over_seeds(rows),
                treatments.over_images(rows),
                treatments.costs(rows, COSTS),
            )
            if grid.lines
        ),
        notes=blocks.remarks(rows),
        source=blocks.source(TABLE, rows[0]["logs"], rows[0]["config"]),
    )
