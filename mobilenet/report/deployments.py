"""Committed results about integer networks and exported files.

experiments/results/exports.csv             of `mobilenet export --verify`
experiments/results/logs/exports/NAME/      the FILE.rows.json of the exports of one experiment
experiments/results/integer_executor.csv    of `python -m mobilenet.benchmark.integer`
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilenet import rundir
from mobilenet.analysis.stats import wilson
from mobilenet.report import results
from mobilenet.report.results import ResultError
from mobilenet.report.table import Table

ENDING = ".rows.json"
FIELDS = (
    *("experiment", "file", "format", "runtime", "weight_bits", "activation_bits", "bytes"),
    *("split", "examples", "top1", "low", "high", "top1_jax", "agreement"),
    *("operations", "equal_codes", "largest"),
    *("latency_ms_median", "latency_ms_min", "latency_ms_p90"),
    *("processor", "versions", "commit", "logs", "remarks"),
)
EXPORTS = Table("exports", FIELDS, by="experiment", page="exports")
EXECUTOR = Table(
    "integer_executor",
    (
        *("file", "part", "kernels", "rounding", "images", "values", "equal", "off_by_one"),
        *("largest", "mean", "largest_real", "mean_real", "top1_agreement", "top1", "top5"),
        *("litert_top1", "litert_top5", "processor", "versions", "commit"),
    ),
    by="",
    page="exports",
)
Row = Mapping[str, str]


def make_rows(
    experiment: str, files: Sequence[Path], *, logs: str = "", remarks: str = ""
) -> list[dict[str, str]]:
    """A row for each runtime of each exported file, largest file first.

    Args:
      experiment: name of these rows.
      files: `FILE.rows.json` of `mobilenet export --verify`.
      logs: where they are kept, below experiments/results.
      remarks: what a reader must know next to the numbers.

    Raises:
      ResultError: another file.
    """
    made: list[dict[str, str]] = []
    for file in sorted(files):
        try:
            found: list[dict[str, Any]] = rundir.read_json(file, list) or []
            made += [_row(row) for row in found]
        except rundir.RunDirectoryError as error:
            raise ResultError(str(error)) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(
                f"{file} is not what `mobilenet export --verify` writes: {error}."
            ) from error
    common = {"experiment": experiment, "logs": logs, "remarks": remarks}
    ordered = sorted(made, key=lambda row: -int(row["bytes"]))
    return [{**row, **common} for row in ordered]


def _row(found: Mapping[str, Any]) -> dict[str, str]:
    low, high = wilson(round(found["top1"] * found["examples"]), found["examples"])
    executor = found.get("executor", {}).values()
    values = sum(part["values"] for part in executor)
    equal = sum(part["equal"] * part["values"] for part in executor)
    return {
        **{key: str(found[key]) for key in ("file", "format", "runtime", "split", "examples")},
        **{key: str(found[key]) for key in ("weight_bits", "activation_bits", "bytes")},
        "top1": f"{100 * found['top1']:.2f}",
        "low": f"{100 * low:.2f}",
        "high": f"{100 * high:.2f}",
        "top1_jax": f"{100 * found['top1_jax']:.2f}",
        "agreement": f"{100 * found['agreement']:.2f}",
        "operations": " ".join(f"{k}={n}" for k, n in found.get("operations", {}).items()),
        "equal_codes": f"{equal / values:.6f}" if values else "",
        "largest": str(max(part["largest"] for part in executor)) if values else "",
        "latency_ms_median": f"{found['latency_ms_median']:.3f}",
        "latency_ms_min": f"{found['latency_ms_min']:.3f}",
        "latency_ms_p90": f"{found['latency_ms_p90']:.3f}",
        "processor": found["processor"],
        "versions": results.versions(found["versions"]),
        "commit": found["commit"],
    }


def add(
    directory: Path, experiment: str, exported: Path, *, remarks: str = ""
) -> list[dict[str, str]]:
    """Copies the verifications of exported files and replaces the rows of the experiment.

    Args:
      directory: experiments/results.
      experiment: name of these rows, and of their folder.
      exported: directory with `FILE.rows.json`.
      remarks: as `make_rows`.

    Raises:
      ResultError: as `make_rows`, a name that is no folder's, or no such files.
    """
    results.check_name("The experiment's name", experiment)
    files = sorted(exported.glob(f"*{ENDING}"))
    if not files:
        raise ResultError(f"{exported} has no *{ENDING}; `mobilenet export --verify` makes them.")
    logs = f"logs/{EXPORTS.name}/{experiment}"
    made = make_rows(experiment, files, logs=logs, remarks=remarks)
    target = directory / logs
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, target / file.name)
    EXPORTS.add(directory, made)
    return made
