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
from mobilenet.report import rows as table_rows
from mobilenet.report.results import ResultError

EXPORTS, EXECUTOR = "exports", "integer_executor"
ENDING = ".rows.json"
FIELDS = (
    *("experiment", "file", "format", "runtime", "weight_bits", "activation_bits", "bytes"),
    *("split", "examples", "top1", "low", "high", "top1_jax", "agreement"),
    *("operations", "equal_codes", "largest"),
    *("latency_ms_median", "latency_ms_min", "latency_ms_p90"),
    *("processor", "versions", "commit", "logs", "remarks"),
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
      remarks: what a reader must know beside the numbers.

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
    results_dir: Path, experiment: str, directory: Path, *, remarks: str = ""
) -> list[dict[str, str]]:
    """Copies what a folder of exported files was found to be, and replaces the experiment's rows.

    Args:
      results_dir: the experiments/results directory.
      experiment: name of these rows, and of their folder.
      directory: with `FILE.rows.json`.
      remarks: as `make_rows`.

    Raises:
      ResultError: as `make_rows`, a name that is no folder's, or no such files.
    """
    results.check_name("The experiment's name", experiment)
    files = sorted(directory.glob(f"*{ENDING}"))
    if not files:
        raise ResultError(f"{directory} has no *{ENDING}; `mobilenet export --verify` makes them.")
    logs = f"logs/{EXPORTS}/{experiment}"
    made = make_rows(experiment, files, logs=logs, remarks=remarks)
    target = results_dir / logs
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, target / file.name)
    table_rows.replace(results_dir / f"{EXPORTS}.csv", FIELDS, made, by="experiment")
    return made


def exports_markdown(rows: Sequence[Row]) -> str:
    """README tables of exports.csv: one an experiment."""
    parts = []
    for experiment in dict.fromkeys(row["experiment"] for row in rows):
        mine = [row for row in rows if row["experiment"] == experiment]
        first = mine[0]
        remarks = f" {first['remarks']}." if first["remarks"] else ""
        lines = [
            f"`{experiment}`: {first['examples']} images of {first['split']}; one picture at a "
            f"time on one thread of {first['processor']}, which is not a phone's; commit "
            f"{first['commit']}.{remarks}",
            "",
            "| file | runtime | kB | top-1 % [95 % interval] | as in JAX, % of classes | codes of "
            "the integer executor, largest difference | ms a picture, median (least–90 %) |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in mine:
            codes = "–"
            if row["equal_codes"]:
                codes = f"{100 * float(row['equal_codes']):.3f} %, {row['largest']}"
            lines.append(
                f"| {row['file']} | {row['runtime']} | {int(row['bytes']) / 1e3:,.0f} | "
                f"{row['top1']} [{row['low']}, {row['high']}] | {row['agreement']} | {codes} | "
                f"{float(row['latency_ms_median']):.2f} ({float(row['latency_ms_min']):.2f}–"
                f"{float(row['latency_ms_p90']):.2f}) |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def executor_markdown(rows: Sequence[Row]) -> str:
    """The README's table of integer_executor.csv: networks, and their worst operation."""
    lines = [
        "| file | executor's rounding | LiteRT's kernels | same class | equal codes of logits | "
        "largest difference, codes (logits) | top-1 %, executor / LiteRT | worst operation |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in (row for row in rows if row["part"] == "network"):
        operations = [
            other
            for other in rows
            if other["part"] != "network"
            and all(other[key] == row[key] for key in ("file", "rounding", "kernels"))
        ]
        worst = "–"
        if operations:
            least = min(operations, key=lambda other: float(other["equal"]))
            largest = max(int(other["largest"]) for other in operations)
            worst = f"{least['part']}: {100 * float(least['equal']):.3f} % equal, {largest} apart"
        same = round(float(row["top1_agreement"]) * int(row["images"]))
        lines.append(
            f"| {row['file']} | {row['rounding']} | {row['kernels']} | "
            f"{same} of {row['images']} | {100 * float(row['equal']):.2f} % | "
            f"{row['largest']} ({float(row['largest_real']):.2f}) | {float(row['top1']):.1f} / "
            f"{float(row['litert_top1']):.1f} | {worst} |"
        )
    return "\n".join(lines)
