"""Committed results about other projects' weights: parity of logits, and accuracy on images.

experiments/results/parity.csv       of `python -m mobilenet.benchmark.parity`
experiments/results/pretrained.csv   of `mobilenet evaluate` on converted weights
"""

import json
from pathlib import Path

from mobilenet import rundir
from mobilenet.analysis.runs import processor
from mobilenet.analysis.stats import wilson
from mobilenet.report.results import ResultError, versions
from mobilenet.report.table import Table

FIELDS = (
    *("row", "weights", "examples", "top1", "low", "high", "top5"),
    *("published_top1", "published_source", "overrides", "device", "processor", "versions"),
    *("commit", "remarks"),
)
ACCURACY = Table("pretrained", FIELDS, by="row", page="parity")
PARITY = Table(
    "parity",
    (
        *("framework", "width", "resolution", "max_abs_difference", "logits_scale"),
        *("versions", "commit"),
    ),
    by="",
    page="parity",
)

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
      evaluation: the `evaluation_*.json`; the run's `summary.json` is next to it.
      published_top1, published_source: the figure to compare with, in percent, and where it stands.
      remarks: what a reader must know next to the numbers.

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
