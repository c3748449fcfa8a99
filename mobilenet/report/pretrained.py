"""Committed results about other projects' weights: parity of logits, and accuracy on pictures.

experiments/results/parity.csv       of `python -m mobilenet.benchmark.parity`
experiments/results/pretrained.csv   of `mobilenet evaluate` on converted weights
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mobilenet import rundir
from mobilenet.analysis.runs import processor
from mobilenet.analysis.stats import wilson
from mobilenet.report import rows as table_rows
from mobilenet.report.results import ResultError, versions

PARITY, ACCURACY = "parity", "pretrained"
FIELDS = (
    *("row", "weights", "examples", "top1", "low", "high", "top5"),
    *("published_top1", "published_source", "overrides", "device", "processor", "versions"),
    *("commit", "remarks"),
)
Row = Mapping[str, str]


# What a row says of `evaluation_*.json`.
EVALUATED = (
    *("top1", "examples", "top5", "overrides", "device", "processor", "versions", "commit"),
)


def make_row(
    name: str,
    evaluation: Path,
    *,
    published_top1: str = "",
    published_source: str = "",
    remarks: str = "",
) -> dict[str, str]:
    """One row from what `mobilenet evaluate` wrote in the run directory of converted weights.

    Args:
      name: of the row.
      evaluation: the `evaluation_*.json`; the run's `summary.json` is beside it.
      published_top1, published_source: the figure beside it, in percent, and where it stands.
      remarks: what a reader must know beside the numbers.

    Raises:
      ResultError: another file, or a run that was not converted.
    """
    try:
        found = rundir.read_object(evaluation, *EVALUATED)
        summary = rundir.read_json(evaluation.parent / "summary.json", dict) or {}
        correct = round(found["top1"] * found["examples"])
    except (rundir.RunDirectoryError, TypeError) as error:
        raise ResultError(
            f"{evaluation} is not an evaluation of `mobilenet evaluate`: {error}"
        ) from error
    if "source" not in summary:
        raise ResultError(
            f"{evaluation.parent} is not a run that `mobilenet convert` made; results of training "
            "are reported by their run directories."
        )
    low, high = wilson(correct, found["examples"])
    return {
        "row": name,
        "weights": summary["source"],
        "examples": str(found["examples"]),
        "top1": f"{100 * found['top1']:.2f}",
        "low": f"{100 * low:.2f}",
        "high": f"{100 * high:.2f}",
        "top5": f"{100 * found['top5']:.2f}",
        "published_top1": published_top1,
        "published_source": published_source,
        "overrides": json.dumps(found["overrides"], sort_keys=True),
        "device": found["device"],
        "processor": processor(found),
        "versions": versions(found["versions"]),
        "commit": found["commit"],
        "remarks": remarks,
    }


def add(results_dir: Path, row: Row) -> None:
    """Puts a row into pretrained.csv, in place of one of its name."""
    table_rows.replace(results_dir / f"{ACCURACY}.csv", FIELDS, [row], by="row")


def accuracy_markdown(rows: Sequence[Row]) -> str:
    """The README's table of pretrained.csv."""
    lines = [
        "| weights | top-1 % [95 % Wilson interval], pictures | top-5 % | the original's top-1 | "
        "remarks |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        gap = ""
        if row["published_top1"]:
            difference = float(row["top1"]) - float(row["published_top1"])
            gap = f"{row['published_top1']} ({difference:+.2f}); {row['published_source']}"
        lines.append(
            f"| {row['row']} | {row['top1']} [{row['low']}, {row['high']}], {row['examples']} | "
            f"{row['top5']} | {gap or '–'} | {row['remarks']} |"
        )
    return "\n".join(lines)


def parity_markdown(rows: Sequence[Row]) -> str:
    """The README's table of parity.csv: a row a framework, the worst of its cases."""
    lines = [
        "| framework | widths | pixels | largest difference of a logit | of logits up to |",
        "|---|---|---|---|---|",
    ]
    for framework in dict.fromkeys(row["framework"] for row in rows):
        mine = [row for row in rows if row["framework"] == framework]
        worst = max(mine, key=lambda row: float(row["max_abs_difference"]))
        widths, sizes = (
            ", ".join(dict.fromkeys(row[key] for row in mine)) for key in ("width", "resolution")
        )
        lines.append(
            f"| {mine[0]['versions'].split(',')[0]} | {widths} | {sizes} | "
            f"{float(worst['max_abs_difference']):.1e} (width {worst['width']}, "
            f"{worst['resolution']} px) | "
            f"{max(float(row['logits_scale']) for row in mine):.1f} |"
        )
    return "\n".join(lines)
