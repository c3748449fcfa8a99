"""The page of ablations: claims of the papers, their variants, and verdicts."""

from collections.abc import Sequence
from pathlib import Path

from mobilenet.report import claims, networks
from mobilenet.report.claim_list import CLAIMS
from mobilenet.report.pages import blocks
from mobilenet.report.pages.blocks import Grid, Line, Page, Row, Section

KNOWN = {claim.name: claim for claim in CLAIMS}


def page(directory: Path) -> Page:
    """The page, from the rows and logs in experiments/results."""
    rows = claims.TABLE.rows(directory)
    judged = [row for row in rows if row["role"] == "claimed"]
    bases = _baselines(rows)
    base = "; ".join(_base(directory, row) for row in bases)
    not_run = [c.name for c in CLAIMS if c.experiment and c.name not in _names(rows)]
    missing = f" Not run: {', '.join(f'`{name}`' for name in not_run)}." if not_run else ""
    return Page(
        title="Ablations: do the papers' claims about the block hold here?",
        question=(
            "Which choices of MobileNetV2's block (linear bottleneck, shortcut, expansion ratio, "
            "squeeze-and-excitation) raise accuracy, as the papers claim?"
        ),
        base=f"{base}.",
        registered=(
            f"{len(judged)} claims were run, each between two variants that `comparisons()` of its "
            f"experiment file names.{missing} Claims about structure, cost and memory need no "
            "runs: `mobilenet reproduce` computes them."
        ),
        conclusion=(_summary(judged), *map(_sentence, judged)),
        sections=tuple(
            _section(scale, name, [row for row in rows if _place(row) == (scale, name)])
            for scale, name in dict.fromkeys(map(_place, rows))
        ),
        figures=blocks.figures(
            directory,
            {"03_differences.svg": "Differences of the ablations, with intervals over seeds"},
        ),
        caution=blocks.caution(
            "These networks", [float(row["top1_mean"]) for row in bases if blocks.of_cifar(row)]
        ),
        legend=(
            "A claim is confirmed or contradicted here when the 95 % t-interval of the difference "
            "over seeds says so, otherwise it is inconclusive; a missing run makes it "
            "inconclusive. "
            + blocks.NO_CORRECTION
            + " Rows without a verdict are shown for comparison and were not registered."
        ),
    )


def _base(directory: Path, row: Row) -> str:
    network = networks.describe(networks.of_size(directory / row["logs"], row))
    return (
        f"{network}, {row['train_examples']} training images x {row['epochs']} epochs: "
        f"{blocks.value(row['top1_mean'], row['low'], row['high'])} % top-1 (95 % t-interval over "
        f"{blocks.count(row)} seeds)"
    )


def _place(row: Row) -> tuple[str, str]:
    return row["scale"], row["claim"]


def _names(rows: Sequence[Row]) -> set[str]:
    return {row["claim"] for row in rows}


def _baselines(rows: Sequence[Row]) -> list[Row]:
    """One row for each scale: the paper's network, which all ablations of a scale share."""
    found: dict[str, Row] = {}
    for row in rows:
        if row["top1_mean"] and row["role"] == "compared" and row["claim"] in ("se", "fig6a"):
            found[row["scale"]] = row  # the rows of "se" come after those of "fig6a"
    for row in rows:
        if row["top1_mean"]:
            found.setdefault(row["scale"], row)
    return list(found.values())


def _summary(judged: Sequence[Row]) -> str:
    def those(verdict: str) -> list[Row]:
        return [row for row in judged if row["verdict"] == verdict]

    confirmed, contradicted = those(claims.CONFIRMED), those(claims.CONTRADICTED)
    named = "; ".join(
        f"`{row['variant']}` minus `{row['baseline']}`: {blocks.difference(row)} points, "
        f"n = {blocks.count(row)} seeds"
        for row in confirmed
    )
    return (
        f"Of {len(judged)} claims about accuracy, {len(confirmed)} are confirmed on these networks"
        f"{f' ({named})' if named else ''}, {len(contradicted)} are contradicted and "
        f"{len(those(claims.INCONCLUSIVE))} are inconclusive."
    )


def _sentence(row: Row) -> str:
    if not row["difference"]:
        return f"`{row['claim']}`: {row['verdict']}; {row['reason']}."
    return (
        f"`{row['claim']}`: {row['verdict']}. `{row['variant']}` minus `{row['baseline']}`: "
        f"{blocks.difference(row)} points, n = {blocks.count(row)} seeds; {row['reason']}."
    )


def _section(scale: str, name: str, rows: Sequence[Row]) -> Section:
    claim = KNOWN[name]
    claimed = next(row for row in rows if row["role"] == "claimed")
    accuracy, apart = blocks.with_n("top-1 % [95 % t over seeds]", rows)
    baseline = claimed["baseline"] or "the baseline"
    recalled = " This claim was recalled, not read in its source." if claim.recalled else ""
    heads = ("variant", accuracy, f"minus {baseline}, points [95 % t]", "params", "MACs")
    return Section(
        heading=f"`{name}`, scale `{scale}`",
        text=(
            f"{claim.statement} ({claim.source}; published: {claim.published}).{recalled}",
            f"**{claimed['verdict'].capitalize()}**: {claimed['reason']}."
            + (
                f" {blocks.count(claimed)} seeds find a true difference of "
                f"{claimed['detectable']} points with a power of 80 %."
                if claimed["detectable"]
                else ""
            ),
        ),
        grids=(
            Grid(
                (*heads, "n") if apart else heads,
                tuple(
                    Line(
                        (
                            row["variant"],
                            blocks.value(row["top1_mean"], row["low"], row["high"]),
                            blocks.difference(row),
                            blocks.thousands(row["params"]),
                            blocks.million(row["macs"]),
                            *([str(blocks.count(row))] * apart),
                        ),
                        (row,),
                    )
                    for row in rows
                ),
            ),
        ),
        source=blocks.source(claims.TABLE, rows[0]["logs"], rows[0]["config"]),
    )
